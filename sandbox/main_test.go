package sandbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/image"
)

// TestMain is there for the examples. They boot VMs, find all that they need as
// a user's program does, in the environment, and cannot skip: so without
// MATCHLOCK_TEST_VM they are left out, and with it they are given a home.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		skip := "^Example"
		if asked := flag.Lookup("test.skip").Value.String(); asked != "" {
			skip = asked + "|" + skip
		}
		flag.Set("test.skip", skip)
		goleak.VerifyTestMain(m)
	}
	home, err := exampleHome(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "home of the examples:", err)
		os.Exit(1)
	}
	status := m.Run()
	if left := sandboxesIn(home); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "examples have left", left)
		status = 1
	}
	if err := os.RemoveAll(home); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// exampleHome makes a home whose store has the image "busybox", and names it and
// the helper in the environment. The kernels are those of MATCHLOCK_TEST_HOME.
func exampleHome(ctx context.Context) (home string, err error) {
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	if shared == "" {
		return "", errors.New("MATCHLOCK_TEST_HOME is not set: run scripts/test-vm.sh")
	}
	helper, err := filepath.Abs("../bin/matchlock")
	if err != nil {
		return "", err
	}
	if home, err = os.MkdirTemp("", "examples-"); err != nil { // mode 0700
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(home)
		}
	}()
	cache := filepath.Join(shared, "home", "cache")
	if err := hostfs.Private(cache); err != nil {
		return "", err
	}
	if err := os.Symlink(cache, filepath.Join(home, "cache")); err != nil {
		return "", err
	}
	images := filepath.Join(home, "data", "images")
	if err := os.Mkdir(filepath.Dir(images), 0o700); err != nil {
		return "", err
	}
	store, err := image.Open(images)
	if err != nil {
		return "", err
	}
	img, err := store.ImportPath(ctx, "busybox", filepath.Join(shared, "images", "busybox.tar"), image.ImportOptions{})
	if err != nil {
		return "", err
	}
	os.Setenv("MATCHLOCK_HOME", home)
	os.Setenv("MATCHLOCK_HELPER", helper)
	return home, img.Release()
}

// sandboxesIn lists the sandboxes' folders in a home.
func sandboxesIn(home string) []string {
	left, _ := filepath.Glob(filepath.Join(home, "state", "sandboxes", "*", "*")) // the pattern is a good one
	return left
}
