package workspace

import (
	"errors"
	"strings"
	"syscall"
)

// maxName is the most bytes of one name, as in Linux.
const maxName = 255

// checkPath holds a path to what FS promises of it. The caller has done so too; what
// opens files of the host looks for itself.
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == "." || name == ".." || strings.IndexByte(name, 0) >= 0:
			return syscall.EINVAL
		case len(name) > maxName:
			return syscall.ENAMETOOLONG
		}
	}
	return nil
}

// splitPath parts a path into its folder and its last name.
func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// joinPath puts a name behind a folder's path; either may be empty.
func joinPath(dir, name string) string {
	if dir == "" || name == "" {
		return dir + name
	}
	return dir + "/" + name
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// absent tells whether an error says that nothing is at a path, as one of a file or a
// link on the way to it does.
func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}
