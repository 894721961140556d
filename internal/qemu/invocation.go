package qemu

import (
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/matchlock/matchlock/internal/wire"
)

// defaultHZ is the timer frequency of Debian's kernels (CONFIG_HZ).
const defaultHZ = 250

// firstExtraFD is the number that the first of exec.Cmd.ExtraFiles has in the child.
const firstExtraFD = 3

// blockDevice is one disk of the guest.
type blockDevice struct {
	index    int // among the disks
	serial   string
	layers   []diskLayer // the lowest first; what is written goes to the last
	readOnly bool
	scratch  bool // is thrown away with the machine: flushes to the host's disk are skipped
}

func (d *blockDevice) top() *diskLayer { return &d.layers[len(d.layers)-1] }

// invocation is a QEMU command line in the making together with the descriptors
// that it names. Everything is handed over by descriptor: no path of the host
// stands in it, and QEMU's seccomp sandbox is on from the start.
type invocation struct {
	args  []string
	files []*os.File // the child's descriptors, from firstExtraFD on
}

func (c *invocation) add(args ...string) { c.args = append(c.args, args...) }

// fd hands f to the child and returns its number there.
func (c *invocation) fd(f *os.File) int {
	c.files = append(c.files, f)
	return firstExtraFD + len(c.files) - 1
}

// procFD is a path by which QEMU opens f.
func (c *invocation) procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", c.fd(f)) }

// channels are the child's ends of what connects it to us.
type channels struct {
	memory        *os.File // what the guest's memory begins as; what is written is the process's own
	qmp           *os.File // stream socket, QEMU's control
	console       *os.File // stream socket, the guest's first serial port
	data, control *os.File // stream sockets, the guest's virtio-serial ports
	fs            *os.File // likewise, the one of files
	dataLater     bool     // data is not connected, but listens
	link          *os.File // datagram socket, the guest's network; nil: none
	monitor       *os.File // listening stream socket, a second QMP for a person; nil: none
	state         *os.File // pipe, the devices as another process has left them; nil: the guest boots
}

// Sizes of the cache of translated code under TCG, in MiB. A boot fills its
// cache, and pays for each page of it; one that holds all of a program's code
// doubles its speed, and costs only as much as is used.
const (
	bootCache = 32
	runCache  = 128
)

// machineType is QEMU's machine and what is chosen of it. ioapic2 gives 24
// virtio-mmio slots in place of 8. The clock is there because kernels look for
// one, for 1 to 2 s if there is none; the host sets the guest's time all the same.
const machineType = "microvm,rtc=on,ioapic2=on"

// invocation writes the whole command line. What it must hold to, and why, is in
// docs/how-it-works.md. The machine's shape is the same however it begins.
func (h *hypervisor) invocation(ch channels) *invocation {
	c := &invocation{}
	c.add("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-name", "matchlock-"+h.config.ID,
		"-M", machineType+",memory-backend=mem0,suppress-vmdesc=on",
		"-m", fmt.Sprint(h.config.MemoryMB), "-smp", fmt.Sprint(h.config.VCPUs),
		"-object", fmt.Sprintf("memory-backend-file,id=mem0,size=%dM,mem-path=%s,share=off", h.config.MemoryMB, c.procFD(ch.memory)))
	cache := bootCache
	if ch.state == nil {
		c.add("-kernel", c.procFD(h.kernel), "-initrd", c.procFD(h.initramfs), "-append", h.kernelArgs(h.boot.HZ))
	} else {
		cache = runCache
		c.add("-incoming", fmt.Sprintf("fd:%d", c.fd(ch.state)), "-global", "migration.send-configuration=off")
	}
	accel := "kvm"
	if h.accel.Name != accelKVM {
		accel = fmt.Sprintf("tcg,thread=multi,tb-size=%d", cache)
	}
	c.add("-accel", accel, "-cpu", h.cpu())
	c.add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", c.fd(ch.qmp)), "-mon", "chardev=qmp,mode=control")
	if ch.monitor != nil {
		c.add("-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", c.fd(ch.monitor)), "-mon", "chardev=monitor,mode=control")
	}
	c.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", c.fd(ch.console)), "-serial", "chardev:console")
	c.add("-device", "virtio-serial-device,max_ports=4") // port 0 is a console, which there is none of
	c.serialPort("data", wire.DataPortName, ch.data, ch.dataLater)
	c.serialPort(controlID, wire.ControlPortName, ch.control, false)
	c.serialPort("fs", wire.FilesPortName, ch.fs, false)
	for i := range h.disks {
		c.blockDevice(&h.disks[i])
	}
	if ch.link != nil {
		// A copy need not announce itself on a link of its own: for that the guest would
		// be interrupted when it begins.
		device := "virtio-net-device,netdev=net0,guest_announce=off,mac=" + GuestMAC().String()
		if h.config.MTU != 1500 {
			device += fmt.Sprintf(",host_mtu=%d", h.config.MTU)
		}
		c.add("-netdev", fmt.Sprintf("dgram,id=net0,local.type=fd,local.str=%d", c.fd(ch.link)), "-device", device)
	}
	c.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	return c
}

// cpu is the model of the guest's processors. TCG runs a string instruction step by
// step: one that claims to be fast at bytes (erms) has the guest copy and clear memory
// by them, at a fifth of the speed of words.
func (h *hypervisor) cpu() string {
	if h.accel.Name == accelKVM {
		return "host"
	}
	return "max,erms=off"
}

// controlID is what QEMU calls the control port, and the socket behind it.
const controlID = "ctl"

// GuestMAC is the hardware address of every guest: each has a link of its own. Its
// prefix is that of locally administered addresses.
func GuestMAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56} }

func (c *invocation) serialPort(id, name string, socket *os.File, listens bool) {
	chardev := fmt.Sprintf("socket,id=%s,fd=%d", id, c.fd(socket))
	if listens {
		chardev += ",server=on,wait=off"
	}
	c.add("-chardev", chardev, "-device", fmt.Sprintf("virtserialport,id=%s,chardev=%s,name=%s", id, id, name))
}

// blockDevice adds a disk. The format is never probed: the lowest file itself is
// the disk, and what lies above it is qcow2. Locks are ours, for QEMU's do not
// hold on descriptors.
func (c *invocation) blockDevice(d *blockDevice) {
	noFlush := onOff(d.readOnly || d.scratch)
	for i := range d.layers {
		l := &d.layers[i]
		n, _ := layerNumber(d.layers[0].path, l.path)
		set, readOnly := layerSet(d.index, n), onOff(d.readOnly || i < len(d.layers)-1)
		l.node = nodeName(d.serial, n)
		file := l.node
		if i > 0 {
			file = fileNode(d.serial, n)
		}
		c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", c.fd(l.file), set),
			"-blockdev", fmt.Sprintf("driver=file,node-name=%s,filename=/dev/fdset/%d,read-only=%s,locking=off,cache.no-flush=%s", file, set, readOnly, noFlush))
		if i > 0 {
			c.add("-blockdev", fmt.Sprintf("driver=qcow2,node-name=%s,file=%s,backing=%s,read-only=%s,cache.no-flush=%s", l.node, file, d.layers[i-1].node, readOnly, noFlush))
		}
	}
	// A host's disk that is full is an error in the guest. By default QEMU would
	// halt the machine until somebody made room.
	c.add("-device", fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s,werror=report,rerror=report", d.top().node, d.serial))
}

// layerSet is the set of descriptors of a disk's n-th layer.
func layerSet(index, n int) int { return 1000*(index+1) + n }

// nodeName is what QEMU calls a disk's n-th layer, and fileNode the file in which
// one above the lowest lies.
func nodeName(serial string, n int) string { return fmt.Sprintf("%s.%d", serial, n) }
func fileNode(serial string, n int) string { return fmt.Sprintf("%s.%d.file", serial, n) }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// kernelArgs is the guest's kernel command line. Nothing of one sandbox stands
// in it: that is boot data.
func (h *hypervisor) kernelArgs(hz int) string {
	if h.config.KernelArgs != "" {
		return h.config.KernelArgs
	}
	args := []string{"console=ttyS0", "panic=-1", "reboot=t",
		// The warnings of its boot, see noTimer. The guest's init silences what user
		// code could have the kernel say.
		"loglevel=5",
		// What has no use in a guest of this kind and costs each command its share:
		// pressure statistics, audit, and security modules without a policy.
		"psi=0", "audit=0", "lsm=landlock,yama",
		// For the environment of /init, which is Go: a translator is slow at first,
		// and what is slow is no reason to be interrupted by signals.
		"GODEBUG=asyncpreemptoff=1,updatemaxprocs=0"}
	if h.tscKHz != 0 {
		// Without a reference clock the kernel would calibrate the TSC against a
		// timer that a busy host spoils, and hang in one boot of three. Under TCG
		// the guest's TSC is the host's, so the host's rate is the answer, and the
		// kernel need not watch it.
		if hz == 0 {
			hz = defaultHZ
		}
		args = append(args, fmt.Sprintf("tsc=reliable tsc_early_khz=%d lpj=%d", h.tscKHz, h.tscKHz*1000/uint64(hz)))
	}
	return strings.Join(args, " ")
}
