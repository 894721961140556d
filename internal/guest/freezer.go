//go:build linux

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// freezer has all processes of a control group stand still (Linux,
// Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze). Blocking calls that a
// signal interrupts may return EINTR afterwards, as after a SIGSTOP.
type freezer struct{ control, events *os.File }

// freezeTime is how long a process may take to come to a halt: one in the middle
// of a disk's or a file system's answer waits for that.
const freezeTime = 5 * time.Second

func openFreezer(cgroup *os.File) (f freezer, err error) {
	if f.control, err = openAt(cgroup, "cgroup.freeze", unix.O_WRONLY); err != nil {
		return f, err
	}
	f.events, err = openAt(cgroup, "cgroup.events", unix.O_RDONLY)
	return f, err
}

func openAt(dir *os.File, name string, mode int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// freeze returns when nothing of the group runs. After an error it may run.
func (f freezer) freeze() error {
	if _, err := f.control.WriteAt([]byte("1"), 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	for deadline := time.Now().Add(freezeTime); !f.frozen(); {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.Join(errors.New("freeze: a process does not come to a halt"), f.thaw())
		}
		// Reading arms it: it wakes us at the next change.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(f.events.Fd()), Events: unix.POLLPRI}}, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return errors.Join(fmt.Errorf("freeze: %w", err), f.thaw())
		}
	}
	return nil
}

func (f freezer) frozen() bool {
	var text [256]byte
	n, _ := f.events.ReadAt(text[:], 0) // what cannot be read is not frozen
	return bytes.Contains(text[:n], []byte("frozen 1"))
}

func (f freezer) thaw() error {
	if _, err := f.control.WriteAt([]byte("0"), 0); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// stillness has user code stand still as long as anybody wants it to. Nothing is started
// meanwhile either.
type stillness struct {
	starter *starter
	freezer freezer

	mu      sync.Mutex
	holders int
}

func newStillness(s *starter) (*stillness, error) {
	f, err := openFreezer(s.cgroup)
	if err != nil {
		return nil, err
	}
	return &stillness{starter: s, freezer: f}, nil
}

// begin returns when user code stands still. After an error it may run.
func (s *stillness) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holders == 0 {
		s.starter.hold()
		if err := s.freezer.freeze(); err != nil {
			s.starter.letGo()
			return err
		}
	}
	s.holders++
	return nil
}

// end takes back one begin.
func (s *stillness) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holders == 1 {
		if err := s.freezer.thaw(); err != nil {
			return err
		}
		s.starter.letGo()
	}
	s.holders--
	return nil
}
