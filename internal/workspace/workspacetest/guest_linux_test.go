package workspacetest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// These run in a guest, in folders that are mounted there: see TestVMWorkspace of
// cmd/matchlock. They are built into one file for it, and the folders are told by the
// environment.

func folders(t *testing.T, variable string) []string {
	list := filepath.SplitList(os.Getenv(variable))
	if len(list) == 0 {
		t.Skipf("runs in a guest, in the folders of %s", variable)
	}
	return list
}

func TestGuestFolders(t *testing.T) {
	for _, folder := range folders(t, "MATCHLOCK_TEST_FOLDERS") {
		for _, name := range slices.Sorted(maps.Keys(All)) {
			t.Run(filepath.Base(folder)+"/"+name, func(t *testing.T) {
				root := filepath.Join(folder, name)
				must(t, os.Mkdir(root, 0o755))
				All[name](t, root)
			})
		}
	}
}

// TestGuestRandom does Random for as long as it is told, in each folder.
func TestGuestRandom(t *testing.T) {
	for _, folder := range folders(t, "MATCHLOCK_TEST_RANDOM") {
		duration, err := time.ParseDuration(os.Getenv("MATCHLOCK_TEST_DURATION"))
		must(t, err)
		t.Run(filepath.Base(folder), func(t *testing.T) { Random(t, folder, uint64(time.Now().UnixNano()), duration) })
	}
}

func TestGuestReadOnly(t *testing.T) {
	for _, folder := range folders(t, "MATCHLOCK_TEST_READ_ONLY") {
		ReadOnly(t, folder)
	}
}
