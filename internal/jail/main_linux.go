package jail

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is all of the first program: it confines itself as it is told on the
// descriptor that its one argument names, and becomes the program that was asked
// for. It returns only what kept it from that.
func Main() error {
	// What is put on is the thread's, and exec makes this thread the whole process.
	runtime.LockOSThread()
	if len(os.Args) != 2 {
		return fmt.Errorf("%s is run by matchlock, not by people", FirstName)
	}
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	unix.CloseOnExec(fd)
	unix.CloseOnExec(fd + 1) // this program
	unix.Close(room - 1)
	conn := os.NewFile(uintptr(fd), "jail")
	var o order
	if err := json.NewDecoder(conn).Decode(&o); err != nil {
		return err
	}
	s := &step{order: o, conn: conn}
	err = s.confine()
	if err == nil {
		err = s.become()
	}
	json.NewEncoder(conn).Encode(answer{Err: err.Error()})
	os.Exit(1)
	return nil
}

// step is the first step of a program's life.
type step struct {
	order
	conn     *os.File
	listener int // see openings
	Report
}

func (s *step) applied(names ...string) { s.Applied = append(s.Applied, names...) }

func (s *step) missing(name string, err error) {
	s.Missing = append(s.Missing, fmt.Sprintf("%s: %v", name, err))
}

// confine puts on all that there is, in the order in which each still can be.
func (s *step) confine() error {
	parts, err := s.takeParts()
	if err != nil {
		return err
	}
	if s.Namespaces {
		if err := s.enterRoot(parts); err != nil {
			return fmt.Errorf("root: %w", err)
		}
		// The host's name is not its affair.
		if err := unix.Sethostname([]byte("jail")); err != nil {
			return fmt.Errorf("sethostname: %w", err)
		}
		s.applied(namespaceNames...)
	}
	if err := s.limit(); err != nil {
		return err
	}
	rules, landlock := s.fileRules(parts)
	if err := s.dropPrivileges(); err != nil {
		return err
	}
	if landlock == nil {
		landlock = restrict(rules)
	}
	switch {
	case landlock == nil:
		s.applied("landlock")
	case !s.Namespaces:
		return fmt.Errorf("landlock: %w", landlock)
	default:
		s.missing("landlock", landlock)
	}
	if s.listener, err = loadFilter(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	s.applied("seccomp")
	return nil
}

// become says that all is well and turns into the program.
func (s *step) become() error {
	// The other end hangs up only by dying: it waits for what we say. That it still
	// lives after this process has asked to die with it is what counts.
	now, err := events(int(s.conn.Fd()), 0)
	if err != nil {
		return err
	}
	if now&unix.POLLHUP != 0 {
		return os.ErrProcessDone
	}
	text, err := json.Marshal(answer{Report: s.Report})
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(int(s.conn.Fd()), text, unix.UnixRights(s.listener), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	return fmt.Errorf("%s: %w", s.Program, syscall.Exec(s.Program, append([]string{s.Program}, s.Args...), []string{}))
}

// limit sets the limits of setrlimit(2), which whatever it becomes cannot raise.
func (s *step) limit() error {
	for _, l := range []struct {
		name  string
		which int
		max   uint64
	}{
		{"core", unix.RLIMIT_CORE, 0},
		{"files", unix.RLIMIT_NOFILE, maxFiles},
		{"processes", unix.RLIMIT_NPROC, uint64(s.Processes)},
		{"memory", unix.RLIMIT_DATA, uint64(s.Memory)},
		{"address space", unix.RLIMIT_AS, uint64(s.Memory) + sharedMemory},
		{"stack", unix.RLIMIT_STACK, maxStack},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
		{"real-time priority", unix.RLIMIT_RTPRIO, 0},
	} {
		if l.which == unix.RLIMIT_NPROC && !s.countsOwn() {
			continue
		}
		var now unix.Rlimit
		err := unix.Prlimit(0, l.which, nil, &now)
		if err == nil {
			most := min(l.max, now.Max) // what it was started with cannot be raised here either
			err = unix.Prlimit(0, l.which, &unix.Rlimit{Cur: most, Max: most}, nil)
		}
		if err != nil {
			return fmt.Errorf("limit of %s: %w", l.name, err)
		}
	}
	s.applied("rlimits")
	return nil
}

// sharedMemory is how much a program may map beside what it may write to of its own:
// files, libraries, and room that a memory allocator keeps.
const sharedMemory = 4 << 30

// maxStack is the size of a thread's stack, which the C library takes from the limit:
// 8 MiB as a rule, and QEMU may have 64 threads that do nothing but wait for a disk.
const maxStack = 2 << 20

// maxFiles is more than a machine with all its disks in many layers has open.
const maxFiles = 1024

// countsOwn tells whether the limit of processes counts this one's alone. Without a
// user of its own, or a user namespace of its own from Linux 5.14 on, it would count
// what else the user runs.
func (s *step) countsOwn() bool {
	if s.OwnUser {
		return true
	}
	var name unix.Utsname
	var major, minor int
	if unix.Uname(&name) != nil {
		return false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return s.Namespaces && n == 2 && (major > 5 || major == 5 && minor >= 14)
}

// dropPrivileges gives up what root, also one of a user namespace, has.
func (s *step) dropPrivileges() error {
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			break // past the last capability of this kernel
		} else if err == unix.EPERM && !s.Namespaces && !s.OwnUser {
			break // it has none
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if s.OwnUser {
		if err := setUser(s.UID); err != nil {
			return fmt.Errorf("change to user %d: %w", s.UID, err)
		}
		s.applied("uid")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	s.applied("no_new_privs")
	// A change of user takes the parent-death signal back.
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
}

// setUser is for this thread, where the runtime's would be for all.
func setUser(id int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return errno
	}
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
			return errno
		}
	}
	return nil
}
