package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestVMWorkspace runs in a guest what programs expect of mounted folders, in one of the
// host, and looks at what of that is on the host then.
func TestVMWorkspace(t *testing.T) { programsIn(t, 0, "rw") }

// TestLongWorkspace is TestVMWorkspace in those too that are the guest's own, and has
// what is done at random go on for a minute in each.
func TestLongWorkspace(t *testing.T) {
	long(t)
	programsIn(t, time.Minute, "rw", "overlay", "memory")
}

func programsIn(t *testing.T, random time.Duration, folders ...string) {
	m := install(t)
	dir := t.TempDir()
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	must := func(steps ...error) {
		t.Helper()
		for _, err := range steps {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"test", "rw", "overlay", "ro", "ro/folder"} {
		must(os.Mkdir(at(name), 0o755))
	}
	must(os.WriteFile(at("ro/file"), []byte("content"), 0o644), os.WriteFile(at("overlay/below"), []byte("content"), 0o644))
	build := exec.Command("go", "test", "-c", "-o", at("test/workspace.test"), "../../internal/workspace/workspacetest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mounts := []string{"run",
		"-v", at("test") + ":/test:ro", "-v", at("rw") + ":/rw", "-v", at("overlay") + ":/overlay:overlay", "-v", ":/memory:memory", "-v", at("ro") + ":/ro:ro",
		"busybox"}
	// passes runs tests in a guest, and wants so many of them passed.
	passes := func(t *testing.T, least int, tests string, env ...string) {
		t.Helper()
		r := m.run(t, nil, slices.Concat(mounts, []string{"env"}, env, []string{"/test/workspace.test", "-test.v", "-test.run=" + tests})...)
		if passed := strings.Count(r.stdout, "--- PASS: "); r.status != 0 || passed < least {
			t.Errorf("status %d, %d passed\n%s%s\n%s", r.status, passed, r.stdout, r.stderr, r.call)
		}
	}
	for _, folder := range folders {
		for _, part := range []string{"^[A-Q]", "^R", "^[S-Z]"} { // each as long as a run may take under TCG
			t.Run(folder+"/"+part, func(t *testing.T) {
				passes(t, 6, "GuestFolders/"+folder+"/"+part, "MATCHLOCK_TEST_FOLDERS=/"+folder)
			})
		}
		if random > 0 {
			t.Run(folder+"/random", func(t *testing.T) {
				passes(t, 2, "GuestRandom", "MATCHLOCK_TEST_RANDOM=/"+folder, "MATCHLOCK_TEST_DURATION="+random.String())
			})
		}
	}
	passes(t, 1, "GuestReadOnly", "MATCHLOCK_TEST_READ_ONLY=/ro")

	// What would be of use on the host: the guest sees what it did, and the host does not.
	r := m.run(t, nil, append(mounts, "sh", "-c", `
		cd /rw
		mknod null c 1 3 || mknod disk b 8 0 || echo no devices
		cp /bin/busybox su && chown 12:34 su && chmod 6777 su && mkdir -m 7777 dir && chown 56:78 dir && mkfifo -m 666 fifo && ln -s /etc/passwd link
		stat -c '%n %a %u:%g' su dir`)...)
	if want := "no devices\nsu 6777 12:34\ndir 7777 56:78\n"; r.status != 0 || r.stdout != want {
		t.Errorf("status %d, and said %q, want %q\n%s\n%s", r.status, r.stdout, want, r.stderr, r.call)
	}
	must(filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode()&(fs.ModeDevice|fs.ModeCharDevice|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 || int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
			t.Errorf("%s is %v, of %d:%d", path, info.Mode(), st.Uid, st.Gid)
		}
		return nil
	}))
	entries, err := os.ReadDir(at("overlay"))
	must(err)
	if len(entries) != 1 || entries[0].Name() != "below" {
		t.Errorf("below an overlay are %v", entries)
	}
	if _, err := os.Lstat(at("rw/su")); err != nil {
		t.Error(err)
	}
}
