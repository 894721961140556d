package jail

import (
	"fmt"
	"testing"
)

// The path is the program's, which may be hostile by then.
func FuzzDescriptorOf(f *testing.F) {
	for _, name := range []string{"/proc/self/fd/3", "/proc/self/fd/", "/proc/self/fd/-1", "/proc/self/fd/3/../4", "/proc/self/fd/4294967299", "/etc/passwd", ""} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		fd, ok := descriptorOf(name)
		if ok && (fd < 0 || fd > 1<<31-1) {
			t.Errorf("%q is descriptor %d", name, fd)
		}
		if want := fmt.Sprintf("%s/%d", descriptors, fd); ok && len(name) == len(want) && name != want {
			t.Errorf("%q is taken for %s", name, want)
		}
	})
}
