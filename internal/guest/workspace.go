//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/fuse"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/internal/workspace"
)

// files is what offers the host's files here: one FUSE file system, and two
// processes of ours that pass on what is asked of it. They share PID 1's memory and
// nothing else of it, so no command, and nothing in PID 1, can hold them up.
type files struct {
	port   *os.File // that of a rehearsal before, see there
	bdi    *os.Root // what the kernel lets be said of file systems: /sys is read-only later
	relay  *fuse.Relay
	loops  [2]child
	stacks [2][]byte
	root   int // descriptor of the file system's root; 0: there is none
}

// prepare makes what needs no host. Memory that the host reaches must stay where it
// is, which huge pages do.
func (f *files) prepare(devices *os.Root) error {
	device, err := waitForPort(wire.FilesPortName)
	if err != nil {
		return err
	}
	if f.port, err = openUnpolled(devices, device); err != nil {
		return err
	}
	// It may have been loaded with what a link needs, or be built in.
	module, _ := filepath.Glob("/modules/later/*fuse.ko")
	for _, path := range module {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("module %s: %w", filepath.Base(path), err)
		}
	}
	if f.bdi, err = os.OpenRoot("/sys/devices/virtual/bdi"); err != nil {
		return err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	if info.Totalram*uint64(info.Unit) >= fileMemory {
		// A kernel that has none moves files a little slower.
		err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte("2"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	f.relay, err = fuse.NewRelay()
	return err
}

// fileMemory is the least memory of a guest that spares 4 MiB for its files.
const fileMemory = 200 << 20

// hostFiles are the files that the host offers, to be mounted.
func (g *guest) hostFiles(b *api.BootData) (mounts []mounting, err error) {
	if len(b.Mounts) == 0 {
		return nil, nil
	}
	if err := g.mountHost(b.User); err != nil {
		return nil, fmt.Errorf("files of the host: %w", err)
	}
	for i, m := range b.Mounts {
		name := strconv.Itoa(i)
		if m.Root {
			name = ""
		}
		tree, err := openTree(filepath.Join(hostPlace, name))
		if err != nil {
			return nil, fmt.Errorf("files for %s: %w", m.Path, err)
		}
		mounts = append(mounts, mounting{m.Path, func() error {
			if err := narrow(tree, m.ReadOnly); err != nil {
				return fmt.Errorf("files for %s: %w", m.Path, err)
			}
			if err := place(tree, m.Path, m.File); err != nil {
				return fmt.Errorf("files for %s: %w", m.Path, err)
			}
			return nil
		}})
	}
	root, err := unix.Open(hostPlace, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	g.files.root = root
	return mounts, unix.Unmount(hostPlace, unix.MNT_DETACH)
}

// settle returns when nothing is under way that was asked of the host, if user code
// stands still: the answer to this question is the last one.
func (f *files) settle() error {
	if f.root == 0 {
		return nil
	}
	// What was written to mapped files goes first, or the kernel would send it when it
	// pleases.
	unix.Syncfs(f.root)
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.root, &st); err != nil && err != unix.ENOTCONN { // the latter: what passes it on was killed
		return fmt.Errorf("files of the host: %w", err)
	}
	return nil
}

// hostPlace is where all that the host offers is for a moment, before user code runs.
const hostPlace = "/run"

// mountHost mounts it and starts those who pass on what is asked.
func (g *guest) mountHost(user string) error {
	device, err := openUnpolled(g.devices, "fuse")
	if err != nil {
		return err
	}
	defer device.Close() // the loops have their own
	port := g.files.port
	defer port.Close() // likewise
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.Fd())
	if err := unix.Mount("matchlock", hostPlace, "fuse", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return err
	}
	var owner workspace.Owner
	if owner.UID, owner.GID, err = g.server.Account(user); err != nil {
		owner = workspace.Owner{} // the first command will say why
	}
	if err := g.files.relay.Hello(int(port.Fd()), owner); err != nil {
		return err
	}
	if err := g.files.start(g.starter, int(device.Fd()), int(port.Fd())); err != nil {
		return err
	}
	return g.files.readAhead()
}

// readAhead has the kernel read as much in advance as one message holds. By itself it
// asks for a quarter of that, and waits for each.
func (f *files) readAhead() error {
	var st unix.Stat_t
	if err := unix.Stat(hostPlace, &st); err != nil {
		return err
	}
	name := fmt.Sprintf("%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return f.bdi.WriteFile(name, []byte(strconv.Itoa(fuse.MaxIO>>10)), 0)
}

// start starts the loops. When one has ended the other one does: then no file can be
// reached, and nobody waits for an answer for ever.
func (f *files) start(s *starter, device, port int) error {
	// One wakes the other at once if both have the same processor: the last one, which
	// user code does not have where one is spared.
	var last unix.CPUSet
	last.Set(runtime.NumCPU() - 1)
	var loops [2]*process
	for i := range f.loops {
		loop := &f.loops[i]
		loop.relay, loop.answers = f.relay, i == 1
		f.stacks[i] = make([]byte, childStack)
		var err error
		if loops[i], err = s.startChild(loop, f.stacks[i], [3]int{device, port, port}); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(loops[i].pid, &last); err != nil {
			return err
		}
	}
	for i, loop := range loops {
		go func() {
			loop.Wait()
			loops[1-i].Signal(unix.SIGKILL) // it may have ended, too
		}()
	}
	return nil
}

// narrow has devices and set-id bits in a tree count for nothing.
func narrow(tree int, readOnly bool) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr)
}
