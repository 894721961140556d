//go:build linux

// Command inside is started in a hypervisor's place and tries what one that its guest
// has taken over would. It says what came of each: nothing, where it worked.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/jail"
)

// Descriptors that it is given.
const (
	shared = 3 // a file, for reading
	own    = 4 // a file, for both
	sealed = 5 // memory that nobody can write to
)

func main() {
	if os.Args[0] == jail.FirstName {
		fmt.Fprintln(os.Stderr, jail.Main())
		os.Exit(1)
	}
	if os.Args[1] == "sleep" {
		time.Sleep(time.Minute)
		return
	}
	supervisor, _ := strconv.Atoi(os.Args[1])
	memory, _ := strconv.Atoi(os.Args[2])
	said := make(map[string]string)
	try := func(what string, err error) {
		said[what] = ""
		if err != nil {
			said[what] = err.Error()
		}
	}
	opened := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	// written opens a file and writes to it: opening alone may give a copy of what it has.
	written := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Pwrite(fd, []byte("poison"), 0)
		return err
	}
	for _, path := range os.Args[3:] {
		try("read "+path, opened(path, unix.O_RDONLY))
		try("stat "+path, unix.Stat(path, new(unix.Stat_t)))
	}
	try("its device", written("/dev/zero", unix.O_RDWR))
	try("its device, read", opened("/dev/zero", unix.O_RDONLY))
	try("own file", func() error { _, err := unix.Pwrite(own, []byte("mine"), 0); return err }())
	try("shared file, read", func() error { _, err := unix.Pread(shared, make([]byte, 1), 0); return err }())
	for name, fd := range map[string]int{"shared": shared, "sealed": sealed} {
		_, err := unix.Pwrite(fd, []byte("poison"), 0)
		try(name+" write", err)
		for _, dir := range []string{"/proc/self/fd", "/dev/fd", "/proc/thread-self/fd"} {
			path := fmt.Sprintf("%s/%d", dir, fd)
			try(name+" open "+dir+" to write", written(path, unix.O_WRONLY))
			try(name+" open "+dir+" for both", written(path, unix.O_RDWR))
			try(name+" truncate "+dir, unix.Truncate(path, 0))
			try(name+" chmod "+dir, unix.Chmod(path, 0o666))
		}
		try(name+" fchmod", unix.Fchmod(fd, 0o666))
		try(name+" fchown", unix.Fchown(fd, os.Getuid(), os.Getgid()))
		try(name+" ftruncate", unix.Ftruncate(fd, 0))
		_, err = unix.Mmap(fd, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		try(name+" mmap", err)
		try(name+" utimes", unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), make([]unix.Timespec, 2), 0))
		_, err = unix.Mmap(fd, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		try("private "+name, err)
	}
	for name, family := range map[string]int{"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "vsock": unix.AF_VSOCK, "packet": unix.AF_PACKET} {
		_, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		try("socket "+name, err)
	}
	try("kill", unix.Kill(supervisor, 0))
	try("kill all", unix.Kill(-1, 0))
	try("tgkill", unix.Tgkill(supervisor, supervisor, 0))
	_, err := unix.PidfdOpen(supervisor, 0)
	try("pidfd", err)
	try("ptrace", unix.PtraceSeize(supervisor))
	_, err = unix.ProcessVMReadv(supervisor, []unix.Iovec{{Base: new(byte), Len: 1}}, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
	try("process_vm_readv", err)
	for _, file := range []string{"environ", "mem", "maps", "cmdline"} {
		try("supervisor's "+file, opened(fmt.Sprintf("/proc/%d/%s", supervisor, file), unix.O_RDONLY))
	}
	said["environment"] = fmt.Sprint(os.Environ())
	for name, number := range map[string]uintptr{"fork": unix.SYS_CLONE, "clone3": unix.SYS_CLONE3} {
		pid, _, errno := unix.RawSyscall6(number, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			unix.Exit(0)
		}
		try(name, errnoError(errno))
	}
	_, err = syscall.ForkExec(os.Args[0], []string{os.Args[0], "sleep"}, nil)
	try("a process", err)
	for _, device := range []string{"/dev/null", "/dev/kvm", "/dev/mem", "/dev/tty", "/dev/fuse"} {
		try("device "+device, opened(device, unix.O_RDONLY))
	}
	try("mknod", unix.Mknod("/null", unix.S_IFCHR|0o666, 1<<8|3))
	try("create /file", opened("/file", unix.O_CREAT|unix.O_WRONLY))
	try("create /tmp/file", opened("/tmp/file", unix.O_CREAT|unix.O_WRONLY))
	try("mkdir", unix.Mkdir("/dir", 0o700))
	try("remove the program", unix.Unlink(os.Args[0]))
	_, err = unix.MemfdCreate("more", 0)
	try("memfd", err)
	try("mount", unix.Mount("", "/", "", unix.MS_REMOUNT, ""))
	try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	try("chroot", unix.Chroot("/"))
	try("setuid", syscall.Setuid(os.Getuid()+1))
	_, err = unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, unix.KEY_SPEC_USER_KEYRING, 1, 0, 0)
	try("keys", err)
	try("more files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}))
	try("core", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}))

	header, caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	try("capget", unix.Capget(&header, &caps[0]))
	said["capabilities"] = fmt.Sprint(caps)
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	said["no_new_privs"] = fmt.Sprint(nnp)
	said["ids"] = fmt.Sprint(os.Getuid(), os.Getgid())
	groups, _ := os.Getgroups()
	said["groups"] = fmt.Sprint(groups)
	said["pid"] = fmt.Sprint(os.Getpid())
	host, _ := os.Hostname()
	said["hostname"] = host

	// What it needs still works.
	var threads sync.WaitGroup
	for range 8 {
		threads.Go(func() { runtime.LockOSThread() })
	}
	threads.Wait()
	_, err = unix.Mmap(-1, 0, memory/2, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	try("memory", err)
	_, err = unix.Mmap(-1, 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	try("more memory", err)
	_, err = unix.Mmap(-1, 0, memory+4<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	try("more shared memory", err)
	json.NewEncoder(os.Stdout).Encode(said)
}

func errnoError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errors.New(errno.Error())
}
