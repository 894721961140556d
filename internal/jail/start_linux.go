package jail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// order is what Main is told.
type order struct {
	Program    string
	Args       []string
	Files      int // descriptors from 3 on that the program gets
	Paths      []string
	Namespaces bool
	OwnUser    bool // become UID, which is the group as well
	UID        int  // in the user namespace, if there is one
	Memory     int64
	Processes  int
}

// answer is what Main says before it becomes the program.
type answer struct {
	Report
	Err string `json:"err,omitempty"`
}

// maxAnswer bounds what is read of it.
const maxAnswer = 64 << 10

// namespaces are the kinds that a program gets of its own, beside that of users.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET

// namespaceNames are what a Report calls them.
var namespaceNames = []string{"mount", "pid", "ipc", "uts", "net"}

// A way is one of those to confine a program, the best first.
type way struct {
	name  string
	flags uintptr // of clone
}

// ways are those that can be tried. Root does without a user namespace where none is
// to be had; others cannot have the rest without it.
func ways() []way {
	best := []way{{"user namespace", namespaces | unix.CLONE_NEWUSER}}
	if os.Geteuid() == 0 {
		best = append(best, way{"namespaces", namespaces})
	}
	return append(best, way{"no namespaces", 0})
}

// Start starts the program. The kernel kills it when the calling thread ends, which
// must be locked to its goroutine until then.
func Start(c *Config) (*Process, error) {
	var failures []string
	for _, w := range ways() {
		p, err := c.start(w)
		if err == nil {
			p.Missing = append(p.Missing, failures...)
			return p, nil
		}
		failures = append(failures, w.name+": "+err.Error())
	}
	return nil, fmt.Errorf("%w: %s", ErrTooLittle, strings.Join(failures, "; "))
}

// start tries one way.
func (c *Config) start(w way) (_ *Process, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "jail"), os.NewFile(uintptr(pair[1]), "jail")
	defer ours.Close()
	defer theirs.Close()

	o := order{
		Program: c.Program, Args: c.Args, Files: len(c.Files), Paths: c.Paths,
		Namespaces: w.flags != 0, Memory: c.Memory + c.Stacks, Processes: c.Processes,
	}
	attr := &syscall.SysProcAttr{Cloneflags: w.flags, Pdeathsig: syscall.SIGKILL, Setsid: true}
	if os.Geteuid() == 0 {
		if o.UID, err = ownUser(c.ID); err != nil {
			return nil, err
		}
		o.OwnUser = true
	}
	if w.flags&unix.CLONE_NEWUSER != 0 {
		attr.UidMappings, attr.GidMappings = mappings(os.Geteuid(), &o), mappings(os.Getegid(), &o)
		attr.GidMappingsEnableSetgroups = o.OwnUser
		o.UID = inner
	}
	// Ours come after the program's, which Main hands on as they are.
	files := append(c.Files[:len(c.Files):len(c.Files)], theirs, c.First)
	first := func(files []*os.File) (*exec.Cmd, error) {
		cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", firstFD+len(c.Files)+1))
		cmd.Args = []string{FirstName, fmt.Sprint(firstFD + len(c.Files))}
		cmd.ExtraFiles, cmd.SysProcAttr = files, attr
		cmd.Stdout, cmd.Stderr = c.Output, c.Output
		cmd.Env, cmd.Dir = []string{}, "/" // nothing of the host's environment
		return cmd, cmd.Start()
	}
	cmd, err := first(withRoom(files))
	if errors.Is(err, unix.EBADF) { // it may not have so many
		cmd, err = first(files)
	}
	if err != nil {
		return nil, cause(err)
	}
	theirs.Close()
	report, listener, err := instruct(ours, &o)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, err
	}
	if w.flags&unix.CLONE_NEWUSER != 0 {
		report.Applied = append([]string{"user"}, report.Applied...)
	}
	p := &Process{cmd, report, serveOpenings(listener, cmd.Process.Pid, c.Devices), nil}
	p.group, err = c.newCgroup()
	if err != nil {
		p.Missing = append(p.Missing, "cgroup: "+err.Error())
	} else {
		p.group.attach(cmd.Process.Pid)
	}
	return p, nil
}

// room is how many descriptors Main and the program may open without a longer table.
const room = 256

// withRoom has a child begin with a table of descriptors that has room: the last one is
// taken, as well as the given ones. A table of a process with threads, as Main is, grows
// only when all processors have been seen to have left the old one, which takes 10 ms.
func withRoom(files []*os.File) []*os.File {
	roomy := make([]*os.File, room-firstFD)
	copy(roomy, files)
	roomy[len(roomy)-1] = files[len(files)-1]
	return roomy
}

// settle waits until the process is in its group.
func (p *Process) settle() {
	if p.group == nil {
		return
	}
	if err := <-p.group.attached; err != nil {
		p.Missing = append(p.Missing, "cgroup: "+err.Error())
	} else {
		p.Applied = append(p.Applied, "cgroup "+p.group.version)
	}
	p.group.attached <- nil // for removeGroup
}

func (p *Process) removeGroup() {
	if p.group != nil {
		<-p.group.attached
		p.group.remove()
	}
}

// firstFD is the number that the first of exec.Cmd.ExtraFiles has in the child.
const firstFD = 3

// instruct tells Main what to do, and returns when it has become the program.
func instruct(conn *os.File, o *order) (_ Report, listener *os.File, err error) {
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return Report{}, nil, err
	}
	text, listener, err := receive(int(conn.Fd()))
	a := answer{Err: "the first step of the jail ended without a word"}
	for d := json.NewDecoder(bytes.NewReader(text)); ; { // a second one if its exec failed
		var next answer
		if d.Decode(&next) != nil {
			break
		}
		a = next
	}
	switch {
	case err != nil:
	case a.Err != "":
		err = errors.New(a.Err)
	case listener == nil:
		err = errors.New("the first step of the jail sent no listener")
	default:
		return a.Report, listener, nil
	}
	if listener != nil {
		listener.Close()
	}
	return Report{}, nil, err
}

// receive reads to the end, which comes with Main's exec, and takes a descriptor that
// comes along.
func receive(conn int) (text []byte, file *os.File, err error) {
	buffer, oob := make([]byte, maxAnswer), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(conn, buffer[len(text):], oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, file, os.NewSyscallError("recvmsg", err)
		case n == 0:
			return text, file, nil
		}
		text = buffer[:len(text)+n]
		if oobn == 0 {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, file, err
		}
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, file, err
			}
			for _, fd := range fds {
				unix.SetNonblock(fd, true) // for the runtime's poller
				file = os.NewFile(uintptr(fd), "seccomp")
			}
		}
	}
}

// inner is what a user of its own is called inside the user namespace, where Main
// itself is 0.
const inner = 1

// mappings say who the users, or groups, of the namespace are outside.
func mappings(self int, o *order) []syscall.SysProcIDMap {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: self, Size: 1}}
	if o.OwnUser {
		m = append(m, syscall.SysProcIDMap{ContainerID: inner, HostID: o.UID, Size: 1})
	}
	return m
}

// Users of 0x70000000 and up are nobody's: above what containers and subuid(5) are
// given, below what is negative as an int32.
const (
	ownUsers     = 0x70000000
	ownUserCount = 1 << 16
)

// ownUser is the user and the group that a program started by root runs as. In a
// user namespace that lacks the high ones it is the last that there is.
func ownUser(id string) (int, error) {
	sum := fnv.New32a()
	sum.Write([]byte(id))
	uid := ownUsers + int64(sum.Sum32()%ownUserCount)
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0, err
	}
	return pickUser(string(text), uid)
}

// pickUser returns uid if the map of user_namespaces(7) has it, else its last.
func pickUser(uidMap string, uid int64) (int, error) {
	var last int64
	for line := range strings.Lines(uidMap) {
		var inside, outside, count int64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return 0, fmt.Errorf("uid_map: %w", err)
		}
		if inside <= uid && uid < inside+count {
			return int(uid), nil
		}
		last = max(last, inside+count-1)
	}
	if last == 0 {
		return 0, errors.New("this user namespace has no user but root")
	}
	return int(last), nil
}

// cause is what happened without the name of a file that says nothing.
func cause(err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return path.Err
	}
	return err
}
