//go:build linux

// Command hostile is the /init of a guest that its attacker has taken over, agent,
// kernel and all. It speaks with its host well enough to be set up, and to run itself
// as the one command that there is: what it does then its argument says.
//
//	/init disks                 tries to write to each disk
//	/init net SECONDS           sends whatever a network card can
//	/init files SECONDS         asks for files what no kernel asks
//	/init console SECONDS       floods the console
//	/init order HARM            has PID 1, which has the other ports, do one of those in ports.go
//
// An order can come with the boot data too, as the variable HOSTILE.
package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/jail"
	"github.com/matchlock/matchlock/internal/wire"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run() error {
	if os.Args[0] == jail.FirstName { // on the host, an honest /init is this too
		return jail.Main()
	}
	if os.Getpid() == 1 {
		return serve()
	}
	attack, args := os.Args[1], os.Args[2:]
	duration := func() time.Duration {
		seconds, _ := strconv.Atoi(args[0])
		return time.Duration(seconds) * time.Second
	}
	switch attack {
	case "disks":
		return attackDisks()
	case "net":
		return attackNetwork(duration())
	case "files":
		return attackFiles(duration())
	case "console":
		return attackConsole(duration())
	case "order":
		return give(args[0])
	}
	return errors.New("no such attack")
}

// serve is what PID 1 does.
func serve() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return err
		}
	}
	for _, folder := range []string{"/modules", "/modules/later"} {
		paths, _ := filepath.Glob(folder + "/*.ko") // sorted, which is the order of their dependence
		for _, path := range paths {
			f, err := os.Open(path)
			if err == nil {
				err = unix.FinitModule(int(f.Fd()), "", 0)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	g := &guest{server: agent.NewServer(agent.HostStarter{}, nil)}
	var err error
	if g.control, err = openPort(wire.ControlPortName, &g.silent); err != nil {
		return err
	}
	if g.data, err = openPort(wire.DataPortName, &g.silent); err != nil {
		return err
	}
	if err := unix.Mkfifo(orders, 0o600); err != nil {
		return err
	}
	go g.obey()
	go g.serveStreams()
	return agent.ServeControl(g.control, g)
}

// attackDisks prints what can be done to each disk, a line each.
func attackDisks() error {
	disks, err := filepath.Glob("/sys/block/vd*")
	if err != nil || len(disks) == 0 {
		return fmt.Errorf("no disks: %v", err)
	}
	for _, disk := range disks {
		serial, err := os.ReadFile(disk + "/serial")
		if err != nil {
			return err
		}
		text, err := os.ReadFile(disk + "/size")
		if err != nil {
			return err
		}
		sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return err
		}
		device := "/dev/" + filepath.Base(disk)
		say := func(what string, err error) {
			verdict := "done"
			if err != nil {
				verdict = err.Error()
			}
			fmt.Printf("%s %s: %s\n", strings.TrimSpace(string(serial)), what, verdict)
		}
		reader, err := os.Open(device)
		if err != nil {
			return err
		}
		// What the driver keeps to, a kernel that is taken over does not.
		unix.IoctlSetPointerInt(int(reader.Fd()), unix.BLKROSET, 0)
		writer, err := os.OpenFile(device, os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			say("open", err)
			continue
		}
		garbage := []byte(strings.Repeat("hostile ", 512))
		for _, at := range []int64{0, sectors * 512 / 8192 * 4096, sectors*512 - 4096} {
			_, err := writer.WriteAt(garbage, at)
			say("write", err)
		}
		_, err = writer.WriteAt(garbage, sectors*512)
		say("extend", err)
		all := [2]uint64{0, uint64(sectors) * 512}
		for what, request := range map[string]uintptr{"discard": unix.BLKDISCARD, "zero": unix.BLKZEROOUT} {
			say(what, ioctl(writer, request, &all))
		}
	}
	return nil
}

// attackConsole writes to the serial port.
func attackConsole(duration time.Duration) error {
	f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	garbage := make([]byte, 4096)
	n := 0
	for end := time.Now().Add(duration); time.Now().Before(end); {
		for i := range garbage {
			garbage[i] = byte(rand.Uint32())
		}
		m, err := f.Write(garbage)
		if err != nil {
			return err
		}
		n += m
	}
	fmt.Println(n, "bytes")
	return nil
}
