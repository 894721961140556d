package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/matchlock/matchlock/sandbox"
)

// Names that the guests' side knows the server by. Requests to the second one carry
// a secret, so that its TLS is ended on the way.
const (
	plainName  = "bench.test"
	secretName = "secret.test"
)

// tokenName is the variable that has the secret: on the host its value, in the guest
// what stands for it.
const tokenName = "BENCH_TOKEN"

// download measures how long the guest takes to get 64 MiB by HTTP, beside a guest
// whose link is gvproxy's. Both are the same QEMU, machine, processors and kernel;
// both have an MTU of 1500 and get it by busybox's wget, measured by the guest's
// clock. Theirs has no file system but its initramfs, and nothing of ours in it.
func download(ctx context.Context, p *place, m *meter) error {
	return besidePeer(ctx, p, m, peer{
		start:  func(*server) (*peerGuest, error) { return newGvproxyGuest(ctx, p) },
		ours:   func(s *server) string { return wget(s.plainURL(plainName)) },
		theirs: func(s *server) string { return wget(s.plainURL(gvproxyHost)) },
	})
}

// wget is a command line that gets something and tells how long it took, as client
// does.
func wget(url string) string {
	return `read -r a _ </proc/uptime; wget -q -O /dev/null '` + url + `' && read -r b _ </proc/uptime && echo "$a $b" | awk '{ print "took", ($2 - $1) * 1000 }'`
}

// terminated measures the same by HTTPS, of which TLS is ended on the way, beside a
// guest whose link is gondolin's, which does that too. The guests do not decrypt:
// under TCG they take longer for that than either link, and would take the same.
func terminated(ctx context.Context, p *place, m *meter) error {
	get := func(s *server) string {
		return fmt.Sprint(clientPath, " download ", downloadBytes, " ", s.secureURL(plainName))
	}
	return besidePeer(ctx, p, m, peer{
		start: func(s *server) (*peerGuest, error) { return newGondolinGuest(ctx, p, s) },
		ours:  get, theirs: get,
	}, "--intercept")
}

// peer is who is measured beside us: its guest, and the commands of both guests that
// tell how long they took.
type peer struct {
	start        func(*server) (*peerGuest, error)
	ours, theirs func(*server) string
}

// besidePeer measures a sandbox, made with further flags, beside a peer's guest. A peer
// that cannot be had is left out.
func besidePeer(ctx context.Context, p *place, m *meter, other peer, flags ...string) (err error) {
	s, err := p.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	sb, err := p.networked(ctx, s, flags...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.close()) }()
	theirs, err := other.start(s)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.skip(1, err)
	} else {
		defer func() { err = errors.Join(err, theirs.close()) }()
	}
	for m.loop() {
		if err := recordTook(m, 0)(sb.exec(ctx, "sh", "-c", other.ours(s))); err != nil {
			return err
		}
		if theirs != nil {
			if err := recordTook(m, 1)(theirs.do(ctx, other.theirs(s))); err != nil {
				return err
			}
		}
	}
	return nil
}

// latencyRequests is how many requests a median is of.
const latencyRequests = 100

// latency measures a small request on a connection that is kept, of which TLS is
// ended on the way and a secret put in, beside the same passed on unseen.
func latency(ctx context.Context, p *place, m *meter) (err error) {
	s, err := p.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	sb, err := p.networked(ctx, s, "--secret", tokenName+"@"+secretName)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.close()) }()
	for m.loop() {
		took, err := times(sb.exec(ctx, clientPath, "latency", strconv.Itoa(latencyRequests), s.secureURL(secretName)+"small", s.secureURL(plainName)+"small"))
		if err != nil {
			return err
		}
		if len(took) != 2 {
			return fmt.Errorf("%d medians, want 2", len(took))
		}
		m.record(0, took[0])
		m.record(1, took[1])
		m.record(2, took[0]-took[1])
	}
	return nil
}

// heldConnections is how many are held at once, every second one with TLS that is
// ended on the way.
const heldConnections = 1000

// connections measures what idle ones cost the supervisor.
func connections(ctx context.Context, p *place, m *meter) (err error) {
	s, err := p.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for m.loop() {
		mib, err := p.holdConnections(ctx, s)
		if err != nil {
			return err
		}
		m.record(0, mib)
	}
	return nil
}

// holdConnections returns how much more memory a supervisor has that holds them, in
// MiB. Each time it is another one: what it has once had it may keep.
func (p *place) holdConnections(ctx context.Context, s *server) (mib float64, err error) {
	sb, err := p.networked(ctx, s, "--secret", tokenName+"@"+secretName)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sb.close()) }()
	_, before, err := mapped(sb.supervisor, "Pss")
	if err != nil {
		return 0, err
	}
	hold := exec.CommandContext(ctx, p.matchlock, "exec", "-i", sb.name, clientPath, "hold", strconv.Itoa(heldConnections),
		s.secureURL(secretName)+"small", s.secureURL(plainName)+"small")
	stdin, err := hold.StdinPipe()
	if err != nil {
		return 0, err
	}
	stdout, err := hold.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := hold.Start(); err != nil {
		return 0, err
	}
	said, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || said != "held\n" {
		err = fmt.Errorf("%d connections are not held: %q, %v", heldConnections, said, err)
	} else {
		var after float64
		_, after, err = mapped(sb.supervisor, "Pss")
		mib = after - before
	}
	stdin.Close()
	return mib, errors.Join(err, hold.Wait())
}

// times are the numbers of a line "took MILLISECONDS…".
func times(said string, err error) (took []float64, _ error) {
	if err != nil {
		return nil, err
	}
	numbers, ok := strings.CutPrefix(strings.TrimSpace(said), "took ")
	if !ok {
		return nil, fmt.Errorf("the guest says %q", said)
	}
	for number := range strings.FieldsSeq(numbers) {
		t, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return nil, err
		}
		took = append(took, t)
	}
	return took, nil
}

// recordTook adds to a line how long the guest says that something took.
func recordTook(m *meter, line int) func(said string, err error) error {
	return func(said string, err error) error {
		took, err := times(said, err)
		if err != nil {
			return err
		}
		m.record(line, took[0])
		return nil
	}
}

// detachedSandbox is one that runs on by itself until it is closed.
type detachedSandbox struct {
	p          *place
	name       string
	supervisor int // process id
}

// detach starts one that idles: args are matchlock's flags and the image.
func (p *place) detach(ctx context.Context, name string, args ...string) (_ *detachedSandbox, err error) {
	sb := &detachedSandbox{p: p, name: name}
	args = append([]string{"run", "--detach", "--rm", "--timeout", "2h", "--name", sb.name}, args...)
	start := exec.CommandContext(ctx, p.matchlock, append(args, "sleep", "7200")...)
	start.Env = append(os.Environ(), tokenName+"=the-value-of-a-secret-that-is-one")
	if out, err := start.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", err, out), sb.close())
	}
	info, err := sandbox.Options{}.Find(ctx, sb.name)
	if err != nil {
		return nil, errors.Join(err, sb.close())
	}
	sb.supervisor = info.PID
	return sb, nil
}

// clientPath is where client is in guests.
const clientPath = "/client"

// networked starts one that may reach a server by both its names, and has client in it,
// with further flags of matchlock's.
func (p *place) networked(ctx context.Context, s *server, flags ...string) (*detachedSandbox, error) {
	client, err := p.client(ctx)
	if err != nil {
		return nil, err
	}
	args := []string{"--upstream-ca", s.ca, "--allow-host", "*"}
	for _, name := range []string{plainName, secretName} {
		args = append(args, "--resolve", name+":127.0.0.1", "--allow-host", name)
	}
	sb, err := p.detach(ctx, "bench-networked", append(append(args, flags...), "busybox")...)
	if err != nil {
		return nil, err
	}
	if err := run(ctx, p.matchlock, "cp", client, sb.name+":"+clientPath); err != nil {
		return nil, errors.Join(err, sb.close())
	}
	return sb, nil
}

// exec runs a command and returns what it says.
func (sb *detachedSandbox) exec(ctx context.Context, command ...string) (string, error) {
	out, err := exec.CommandContext(ctx, sb.p.matchlock, append([]string{"exec", sb.name}, command...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return string(out), err
}

func (sb *detachedSandbox) close() error {
	// Whatever has become of its start, and of us: it goes.
	err := sandbox.Options{}.Remove(context.Background(), sb.name, true)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	return err
}

// client builds bench/client, and returns its path.
func (p *place) client(ctx context.Context) (string, error) {
	path := filepath.Join(p.dir, "client")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./bench/client")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("client: %w: %s", err, out)
	}
	return path, nil
}
