package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Whom the network is measured beside.
const (
	gvproxyVersion  = "v0.8.9"
	gondolinVersion = "0.12.0"
)

// gvproxyHost is where gvproxy has this host's loopback.
const gvproxyHost = "192.168.127.254"

// peerGuest is a bare machine with a link or files that another program serves. Its
// init runs lines of shell that come by the console.
type peerGuest struct {
	server, machine *exec.Cmd
	said            bytes.Buffer // by server; to be read when that has ended
	orders          io.WriteCloser
	console         *bufio.Scanner
	stop            context.CancelFunc
}

// peerInit is its init. Both peers call the gateway by the same address, and have
// 192.168.127.3 to give.
const peerInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do insmod $module; done
ip link set lo up
ip link set eth0 up
ip addr add 192.168.127.3/24 dev eth0
ip route add default via 192.168.127.1
echo nameserver 192.168.127.1 >/etc/resolv.conf
stty -echo
echo
echo '` + up + `'
while read -r line; do eval "$line"; done
`

// peerMAC is the hardware address that gvproxy expects.
const peerMAC = "5a:94:ef:e4:0c:ee"

// newGvproxyGuest returns an error where gvproxy cannot be had or does not run, by
// which it is no fault.
func newGvproxyGuest(ctx context.Context, p *place) (*peerGuest, error) {
	tools := filepath.Join(p.tools, "gvproxy-"+gvproxyVersion)
	program := filepath.Join(tools, "gvproxy")
	if _, err := os.Stat(program); err != nil {
		if err := run(ctx, "env", "GOBIN="+tools, "CGO_ENABLED=0", "go", "install", "github.com/containers/gvisor-tap-vsock/cmd/gvproxy@"+gvproxyVersion); err != nil {
			return nil, err
		}
	}
	socket := filepath.Join(p.dir, "gvproxy")
	os.Remove(socket)
	return newPeerGuest(ctx, p, socket, program, "-listen-qemu", "unix://"+socket, "-ssh-port", "-1")
}

// gondolinLink serves a link at a socket, with the requests of whoever asks passed
// on to this host. The names of the server are not known to its resolver.
const gondolinLink = `
import dns from 'node:dns';
import { syncBuiltinESMExports } from 'node:module';
const lookup = dns.lookup;
const here = { address: '127.0.0.1', family: 4 };
dns.lookup = (name, options, done) => {
	if (typeof options === 'function') [options, done] = [{}, options];
	if (!name.endsWith('.test')) return lookup.call(dns, name, options, done);
	process.nextTick(() => options.all ? done(null, [here]) : done(null, here.address, here.family));
};
syncBuiltinESMExports();
const [, , gondolin, socketPath, mitmCertDir] = process.argv;
const { QemuNetworkBackend } = await import(gondolin + '/dist/src/qemu/net.js');
const { createHttpHooks } = await import(gondolin + '/dist/src/index.js');
const { httpHooks } = createHttpHooks({ allowedHosts: ['*.test'], blockInternalRanges: false });
const link = new QemuNetworkBackend({
	socketPath, mitmCertDir, httpHooks,
	vmMac: Buffer.from('5a94efe40cee', 'hex'),
	maxHttpResponseBodyBytes: 256 << 20,
	dnsLookup: (name, options, done) => done(null, [here]),
});
link.on('error', (error) => console.error(error));
link.start();
`

// newGondolinGuest is newGvproxyGuest for gondolin.
func newGondolinGuest(ctx context.Context, p *place, s *server) (*peerGuest, error) {
	if _, err := exec.LookPath("npm"); err != nil {
		return nil, errors.New("npm is not installed")
	}
	tools := filepath.Join(p.tools, "gondolin-"+gondolinVersion)
	gondolin := filepath.Join(tools, "node_modules", "@earendil-works", "gondolin")
	if _, err := os.Stat(gondolin); err != nil {
		if err := run(ctx, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", tools, "@earendil-works/gondolin@"+gondolinVersion); err != nil {
			return nil, err
		}
	}
	certificates, err := os.MkdirTemp(p.dir, "gondolin-")
	if err != nil {
		return nil, err
	}
	script := filepath.Join(certificates, "link.mjs")
	if err := os.WriteFile(script, []byte(gondolinLink), 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(p.dir, "gondolin")
	os.Remove(socket)
	return newPeerGuest(ctx, p, socket, "env", "NODE_EXTRA_CA_CERTS="+s.ca, "node", script, gondolin, socket, certificates)
}

// newPeerGuest starts a program that is to serve a link at a socket, and a machine on
// that.
func newPeerGuest(ctx context.Context, p *place, socket, program string, args ...string) (*peerGuest, error) {
	bare, err := newBareMachine(ctx, p)
	if err != nil {
		return nil, err
	}
	initramfs, err := peerInitramfs(ctx, p, bare.modules)
	if err != nil {
		return nil, err
	}
	bare.args = append(bare.args, "-initrd", initramfs,
		"-netdev", "stream,id=net0,server=off,addr.type=unix,addr.path="+socket,
		"-device", "virtio-net-device,netdev=net0,mac="+peerMAC)
	return startPeerGuest(ctx, bare, socket, program, args...)
}

// startPeerGuest starts a program, and when its socket is there a machine that is
// served by it.
func startPeerGuest(ctx context.Context, bare *bareMachine, socket, program string, args ...string) (_ *peerGuest, err error) {
	for i, arg := range bare.args {
		bare.args[i] = bootCache.ReplaceAllString(arg, copyCache)
	}
	ctx, stop := context.WithCancel(ctx)
	g := &peerGuest{stop: stop}
	defer func() {
		if err != nil {
			g.close()
			said := bytes.TrimSpace(g.said.Bytes())
			err = fmt.Errorf("%w: %s", err, said[bytes.LastIndexByte(said, '\n')+1:])
		}
	}()
	server := exec.CommandContext(ctx, program, args...)
	server.Stdout, server.Stderr = &g.said, &g.said
	if err := server.Start(); err != nil {
		return nil, err
	}
	g.server = server
	if err := awaitFile(ctx, socket); err != nil {
		return nil, err
	}
	machine := exec.CommandContext(ctx, bare.qemu, bare.args...)
	if g.orders, err = machine.StdinPipe(); err != nil {
		return nil, err
	}
	console, err := machine.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := machine.Start(); err != nil {
		return nil, err
	}
	g.machine, g.console = machine, bufio.NewScanner(console)
	_, err = g.await(up)
	return g, err
}

// bootCache is how much of the guest's code QEMU keeps that boots one of ours, and
// copyCache, that has a copy; which a guest beside is to have.
var bootCache = regexp.MustCompile(`tb-size=\d+`)

const copyCache = "tb-size=128"

// serverDeadline is how long a program has to begin to serve.
const serverDeadline = 20 * time.Second

// awaitFile waits until a file is there.
func awaitFile(ctx context.Context, path string) error {
	for began := time.Now(); time.Since(began) < serverDeadline && ctx.Err() == nil; time.Sleep(settle / 50) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s does not come", path)
}

// peerInitramfs is an initramfs of busybox, client, and the modules that a link takes.
func peerInitramfs(ctx context.Context, p *place, modules string) (string, error) {
	client, err := p.client(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.dir, "peer.cpio")
	return path, run(ctx, "sh", "-ec", `
		modules=$2 client=$3 init=$4
		rm -rf "$0/peer"
		mkdir -p "$0/peer/bin" "$0/peer/modules" "$0/peer/proc" "$0/peer/dev" "$0/peer/etc"
		cd "$0/peer"
		cp "$(command -v busybox)" bin/busybox
		cp "$client" client
		find "$modules" -name '*virtio*.ko' -o -name '*failover.ko' | while read -r module; do cp "$module" modules; done
		printf '%s' "$init" >init
		chmod 0755 init
		find . | cpio --quiet --create --format=newc --owner=0:0 >"$1"`, p.dir, path, modules, client, peerInit)
}

// do runs a line of shell, and returns the line that it says: "took …", as client
// says it.
func (g *peerGuest) do(ctx context.Context, line string) (string, error) {
	if _, err := io.WriteString(g.orders, line+" || echo took nothing\n"); err != nil {
		return "", err
	}
	return g.await("took ")
}

// await returns the first line of the console that begins so.
func (g *peerGuest) await(prefix string) (string, error) {
	silent := time.AfterFunc(bootDeadline, g.stop)
	defer silent.Stop()
	last := ""
	for g.console.Scan() {
		if strings.HasPrefix(g.console.Text(), prefix) {
			return g.console.Text(), nil
		}
		last = g.console.Text()
	}
	return "", fmt.Errorf("the guest beside does not say %q; it said last: %q", prefix, last)
}

// close ends both, by a signal.
func (g *peerGuest) close() error {
	g.stop()
	for _, c := range []*exec.Cmd{g.machine, g.server} {
		if c != nil {
			c.Wait()
		}
	}
	return nil
}
