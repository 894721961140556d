package boot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// withApt gives the host an apt of two scripts. They find their files in the folder $APT.
func (h *host) withApt(cache, get string, files map[string][]byte) {
	h.t.Helper()
	dir := h.t.TempDir()
	writeTree(h.t, dir, files)
	for name, script := range map[string]string{"apt-cache": cache, "apt-get": get} {
		h.mustFail(os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nset -e\n"+script), 0o700))
	}
	h.t.Setenv("PATH", dir+":/usr/bin:/bin")
	h.t.Setenv("APT", dir)
}

const (
	showCloud = `
test "$*" = "show --no-all-versions linux-image-cloud-amd64"
cat <<END
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-base (>= 4.3), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud
 Depends: a line of text
END
`
	getDeb = `
for last; do :; done
test "$1" = download && test "$last" = linux-image-6.1.0-56-cloud-amd64=6.1.192-2
echo dlstatus:1:0.0000:Retrieving file 1 of 1 >&3
echo pmstatus:other >&3
cp "$APT/kernel.deb" linux-image.deb
echo dlstatus:1:100.0000:Retrieving file 1 of 1 >&3
`
)

func TestFetch(t *testing.T) {
	h := newHost(t)
	h.withApt(showCloud, getDeb, map[string][]byte{"kernel.deb": kernelDeb()})
	var phases []string
	h.o.Progress = func(phase string, done, total int64) {
		if phase == "download kernel" {
			phases = append(phases, phase)
			if total != 100 || done != 0 && done != 100 {
				t.Errorf("%s: %d of %d", phase, done, total)
			}
		}
	}
	f := h.mustPrepare()
	if f.Release != testRelease || f.HZ != 250 || filepath.Base(f.Kernel) != "vmlinux" {
		t.Errorf("got %+v", f)
	}
	if len(phases) != 2 {
		t.Errorf("got %d notes of progress, want 2", len(phases))
	}
	h.withApt("exit 1", "exit 1", nil) // not asked again
	if again := h.mustPrepare(); *again != *f {
		t.Errorf("got %+v, want %+v", again, f)
	}
}

func TestFetchErrors(t *testing.T) {
	deb := map[string][]byte{"kernel.deb": kernelDeb()}
	tests := []struct {
		name, cache, get string
		files            map[string][]byte
		want             string
		hint             string // none: it is no NotFoundError
	}{
		{"no lists", "echo 'E: No packages found' >&2; exit 100", getDeb, deb,
			"no kernel for amd64 cached or installed, and none could be fetched: package linux-image-cloud-amd64: No packages found", "apt-get update"},
		{"nothing said", "exit 100", getDeb, deb, "package linux-image-cloud-amd64: exit status 100", "apt-get update"},
		{"another metapackage", "echo 'Depends: linux-image (= 1)'", getDeb, deb, `depends on "linux-image (= 1)": no kernel`, "apt-get update"},
		{"old lists", showCloud, "echo 'W: old' >&2; echo 'E: Failed to fetch it: 404 Not Found' >&2; exit 100", deb,
			"package linux-image-6.1.0-56-cloud-amd64=6.1.192-2: Failed to fetch it: 404 Not Found", "apt-get update"},
		{"nothing fetched", showCloud, "exit 0", deb, "apt left 0 files", ""},
		{"two fetched", showCloud, "touch a.deb b.deb", deb, "apt left 2 files", ""},
		{"garbage fetched", showCloud, getDeb, map[string][]byte{"kernel.deb": []byte("garbage")}, "6.1.192-2: not a Debian package", ""},
		{"cut", showCloud, getDeb, map[string][]byte{"kernel.deb": kernelDeb()[:1000]}, "unexpected EOF", ""},
		{"no kernel", showCloud, getDeb, map[string][]byte{"kernel.deb": debOf("", nil)}, "0 kernels inside", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.withApt(tt.cache, tt.get, tt.files)
			_, err := h.prepare()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want %q", err, tt.want)
			}
			notFound, ok := errors.AsType[*NotFoundError](err)
			if ok != (tt.hint != "") || ok && !strings.Contains(notFound.Hint(), tt.hint) {
				t.Errorf("got %#v, want a hint of %q", err, tt.hint)
			}
			h.checkCache()
		})
	}
}

func TestFetchWithoutApt(t *testing.T) {
	h := newHost(t)
	_, err := h.prepare()
	notFound, ok := errors.AsType[*NotFoundError](err)
	if !ok || strings.Contains(notFound.Hint(), "apt-get") || !strings.Contains(notFound.Hint(), "MATCHLOCK_KERNEL") {
		t.Errorf("got %#v", err)
	}
}

// An apt that does not listen does not keep us, and its children end with it.
func TestFetchCancelled(t *testing.T) {
	h := newHost(t)
	h.withApt(showCloud, `
trap '' TERM
exec 9>"$APT/alive"
sleep 1000 &
echo dlstatus:1:50.0000:x >&3
wait
`, nil)
	alive := filepath.Join(os.Getenv("APT"), "alive")
	h.mustFail(syscall.Mkfifo(alive, 0o600))
	r, err := os.OpenFile(alive, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	h.o.Progress = func(string, int64, int64) { cancel() }
	if _, err := prepare(ctx, h.o, h.root); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	h.checkCache()
	h.mustFail(r.SetReadDeadline(time.Now().Add(10 * time.Second)))
	if _, err := io.ReadAll(r); err != nil { // ends when nobody holds the other end
		t.Errorf("the children are still there: %v", err)
	}
}
