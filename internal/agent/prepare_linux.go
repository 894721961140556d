package agent

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is what Docker gives.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// prepare finds out how, as whom, where and with what a command is to start.
func (s *Server) prepare(req *execRequest) (path string, attr *ProcAttr, err error) {
	who, err := s.resolve(req.user)
	if err != nil {
		return "", nil, err
	}
	attr = &ProcAttr{Dir: "/", Credential: &who.Credential, TTY: req.tty}
	if req.dir != "" && req.dir != "/" {
		attr.Dir = req.dir
		if err := os.MkdirAll(req.dir, 0o755); err != nil {
			return "", nil, wrap("working directory", err)
		}
	}
	base := s.baseEnv()
	lookup := func(key string) (string, bool) {
		if value, ok := req.env[key]; ok {
			return value, true
		}
		value, ok := base[key]
		return value, ok
	}
	attr.Env = make([]string, 0, len(req.env)+len(base)+4)
	for key, value := range req.env {
		attr.Env = append(attr.Env, key+"="+value)
	}
	for key, value := range base {
		if _, ok := req.env[key]; !ok {
			attr.Env = append(attr.Env, key+"="+value)
		}
	}
	addDefault := func(key, value string) string {
		if given, ok := lookup(key); ok {
			return given
		}
		attr.Env = append(attr.Env, key+"="+value)
		return value
	}
	searchPath := addDefault("PATH", defaultPath)
	addDefault("HOME", who.home)
	if who.name != "" {
		addDefault("USER", who.name)
	}
	if req.tty {
		addDefault("TERM", "xterm")
	}
	path, err = lookPath(req.args[0], searchPath, attr.Dir, &who.Credential)
	return path, attr, err
}

// accountFiles tells /etc/passwd and /etc/group from what they have been: these are
// what stat(2) says of them, without the times of reading.
type accountFiles [2]unix.Stat_t

func statAccountFiles() (files accountFiles) {
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		if unix.Stat(path, &files[i]) != nil {
			files[i] = unix.Stat_t{}
		}
		files[i].Atim = unix.Timespec{}
	}
	return files
}

// knownRoot is what the account of root is, as long as the files are the same.
type knownRoot struct {
	account *account
	files   accountFiles
}

// RememberRoot looks root up, so that commands of root, which most are, need not
// as long as nobody has touched /etc/passwd and /etc/group. It is called when
// nobody can: what changes a file changes its times, but two changes close to each
// other may leave the same.
func (s *Server) RememberRoot() {
	files := statAccountFiles()
	if who, err := s.resolve(""); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.root = &knownRoot{who, files}
	}
}

// resolve finds out who a command of user runs as.
func (s *Server) resolve(user string) (*account, error) {
	if user == "" {
		s.mu.Lock()
		root := s.root
		s.mu.Unlock()
		if root != nil && statAccountFiles() == root.files {
			return root.account, nil
		}
	}
	return resolveUser(user, readSystemFile("/etc/passwd"), readSystemFile("/etc/group"))
}

// Account is the user and group that commands of user run as.
func (s *Server) Account(user string) (uid, gid uint32, err error) {
	who, err := s.resolve(user)
	if err != nil {
		return 0, 0, err
	}
	return who.UID, who.GID, nil
}

// lookPath finds the program that name means for cred, as execvp(3) would.
func lookPath(name, searchPath, dir string, cred *Credential) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if name == "" {
		return "", notFound(name)
	}
	var err error // why what was found will not do
	for folder := range strings.SplitSeq(searchPath, ":") {
		path := name
		if folder != "" {
			path = strings.TrimSuffix(folder, "/") + "/" + name
		}
		place := path
		if !strings.HasPrefix(place, "/") {
			place = dir + "/" + place
		}
		var st unix.Stat_t
		if unix.Stat(place, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if !executable(&st, cred) {
			err = pathError("exec:", path, &withText{"permission denied", ErrNotExecutable})
			continue
		}
		if !strings.Contains(path, "/") {
			path = "./" + path
		}
		return path, nil
	}
	if err == nil {
		err = notFound(name)
	}
	return "", err
}

func notFound(name string) error {
	return pathError("exec:", name, &withText{"not found in PATH", ErrCommandNotFound})
}

// executable says what a file's permission bits say.
func executable(st *unix.Stat_t, cred *Credential) bool {
	switch {
	case cred.UID == 0:
		return st.Mode&0o111 != 0
	case cred.UID == st.Uid:
		return st.Mode&0o100 != 0
	case cred.GID == st.Gid:
		return st.Mode&0o010 != 0
	}
	for _, gid := range cred.Groups {
		if gid == st.Gid {
			return st.Mode&0o010 != 0
		}
	}
	return st.Mode&0o001 != 0
}

// start starts the program at path; a text without an interpreter line is run
// by the shell, as execvp(3) does.
func (s *Server) start(path string, args []string, attr *ProcAttr) (Process, error) {
	p, err := s.starter.Start(path, args, attr)
	if errors.Is(err, unix.ENOEXEC) {
		shell := append([]string{"/bin/sh", path}, args[1:]...)
		if p, err := s.starter.Start(shell[0], shell, attr); err == nil {
			return p, nil
		}
	}
	var errno syscall.Errno
	switch {
	case err == nil:
		return p, nil
	case !errors.As(err, &errno):
		return nil, pathError("exec:", path, err)
	case errno == unix.ENOENT:
		return nil, pathError("exec:", path, &withText{errno.Error(), ErrCommandNotFound})
	case errno == unix.EAGAIN, errno == unix.ENOMEM, errno == unix.EMFILE, errno == unix.ENFILE:
		return nil, pathError("exec:", path, errno) // not the program's fault
	}
	return nil, pathError("exec:", path, &withText{errno.Error(), ErrNotExecutable})
}

// systemFileLimit bounds /etc/passwd and /etc/group.
const systemFileLimit = 4 << 20

// readSystemFile returns a function that reads a file of the image, which may
// be anything.
func readSystemFile(path string) func() ([]byte, error) {
	return func() ([]byte, error) {
		f, st, err := openRegular(path)
		if err != nil {
			return nil, err
		}
		defer f.close()
		if st.Size > systemFileLimit {
			return nil, pathError("file", path, ErrTooLarge)
		}
		content := make([]byte, st.Size)
		n, err := f.readFull(content)
		return content[:n], err
	}
}
