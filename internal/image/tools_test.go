package image

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/matchlock/matchlock/internal/compress"
)

// tool returns the path of a program that a test needs, which is an error to lack: make test installs it.
func tool(t *testing.T, name string) string {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") != "1" {
		t.Skipf("needs %s: runs with MATCHLOCK_TEST_VM=1", name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDebianRegistry pulls from Debian's docker-registry.
func TestDebianRegistry(t *testing.T) {
	program := tool(t, "docker-registry")
	host := freeAddress(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(dir, "data"), host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	said := func() string {
		data, err := os.ReadFile(output.Name())
		return fmt.Sprintf("it says:\n%s(%v)", data, err)
	}
	server := exec.Command(program, "serve", config)
	server.Stdout, server.Stderr = output, output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		server.Process.Kill() // an error says that it has ended
		<-ended
	})
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) { // it does not say when it listens
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			break
		} else if time.Since(begin) > 30*time.Second {
			t.Fatalf("%v; %s", err, said())
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("docker-registry ended: %v; %s", err, said())
		default:
		}
	}

	made, err := random.Image(300_000, 12)
	if err != nil {
		t.Fatal(err)
	}
	file, err := made.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", hostArch()
	if made, err = mutate.ConfigFile(made, file); err != nil {
		t.Fatal(err)
	}
	ref := host + "/team/tool:v1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, made); err != nil {
		t.Fatal(err)
	}
	want, err := made.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	image := mustPull(t, s, ref, PullOptions{})
	if image.Digest != want.String() || len(image.Layers) != MaxLayers {
		t.Errorf("pulled %s with %d layer files, want %s with %d", image.Digest, len(image.Layers), want, MaxLayers)
	}
	if _, err := s.Pull(t.Context(), host+"/team/tool:v2", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tag that is not there: %v, want ErrNotFound", err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestUmociReads has umoci unpack an image straight from the store.
func TestUmociReads(t *testing.T) {
	program := tool(t, "umoci")
	s := newStore(t)
	mustImport(t, s, "box", rootTar(t))
	bundle := filepath.Join(t.TempDir(), "bundle")
	unpack := exec.Command(program, "unpack", "--image", s.dir+":box", bundle)
	if os.Geteuid() != 0 {
		unpack.Args = append(unpack.Args, "--rootless")
	}
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if data, err := os.ReadFile(filepath.Join(bundle, "rootfs/bin/hello")); err != nil || string(data) != "hello, world\n" {
		t.Errorf("unpacked %q, %v", data, err)
	}
}

// TestFullDisk runs out of space in the middle of a layer: an error that says so, and nothing left.
func TestFullDisk(t *testing.T) {
	mount, umount := tool(t, "mount"), tool(t, "umount")
	small := t.TempDir()
	if out, err := exec.Command(mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", small).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command(umount, small).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}()
	s, err := Open(filepath.Join(small, "images"))
	if err != nil {
		t.Fatal(err)
	}
	big := makeTar(t, entry{name: "usr/big", data: strings.Repeat("0123456789abcdef", 1<<17)})
	for _, c := range []compress.Format{compress.Plain, compress.Gzip} {
		_, err := s.Import(t.Context(), "big", bytes.NewReader(pack(t, c, big)), ImportOptions{})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v: %v, want ENOSPC", c, err)
		}
	}
	if left := tree(t, s.path("tmp")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	mustImport(t, s, "small", rootTar(t)).Release()
}
