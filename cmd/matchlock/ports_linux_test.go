package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// portServers answer when all has come, which is half-closing: at the guest's
// address and at its loopback, and datagrams one by one.
const portServers = `
import socket, threading
def serve(address):
    listener = socket.create_server(address)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],)).start()
def answer(conn):
    conn.sendall(b"hello ")
    got = b""
    while part := conn.recv(65536):
        got += part
    conn.sendall(str(len(got)).encode())
    conn.close()
for address in ("0.0.0.0", 8000), ("127.0.0.1", 8001):
    threading.Thread(target=serve, args=(address,)).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("0.0.0.0", 8002))
while True:
    message, peer = u.recvfrom(65536)
    u.sendto(message.upper(), peer)
`

// portOf is where a published port is on this host.
func (m *installed) portOf(t *testing.T, box, port string) string {
	t.Helper()
	r := m.run(t, nil, "port", box, port)
	if r.status != 0 {
		t.Fatalf("port %s: status %d\n%s", port, r.status, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// testPorts reaches the guest's servers from this host.
func testPorts(t *testing.T, m *installed, box string) {
	m.mustRun(t, "exec", "-d", box, "python3", "-c", portServers)
	if r := m.call(t, box, "for i in $(seq 200); do grep -q :1F42 /proc/net/udp && exit; sleep 0.1; done; exit 1"); r.status != 0 {
		t.Fatalf("the guest's servers do not start")
	}
	t.Run("address", func(t *testing.T) { halfClose(t, m.portOf(t, box, "8000")) })
	t.Run("loopback", func(t *testing.T) { halfClose(t, m.portOf(t, box, "8001")) })
	t.Run("udp", func(t *testing.T) {
		for range 2 { // each with a port of its own
			conn, err := net.Dial("udp", m.portOf(t, box, "8002/udp"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, message := range []string{"one", strings.Repeat("y", 1400), strings.Repeat("z", 8000)} {
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				if _, err := io.WriteString(conn, message); err != nil {
					t.Fatal(err)
				}
				answer := make([]byte, 10_000)
				if n, err := conn.Read(answer); err != nil || string(answer[:n]) != strings.ToUpper(message) {
					t.Errorf("answer of %d bytes, %v; want %d", n, err, len(message))
				}
			}
		}
	})
	t.Run("list", func(t *testing.T) {
		want := fmt.Sprintf("8000/tcp -> %s\n8001/tcp -> %s\n8002/udp -> %s\n", m.portOf(t, box, "8000"), m.portOf(t, box, "8001"), m.portOf(t, box, "8002/udp"))
		if r := m.run(t, nil, "port", box); r.stdout != want {
			t.Errorf("got\n%swant\n%s", r.stdout, want)
		}
		if r := m.run(t, nil, "port", box, "8002"); r.status != 1 || r.stdout != "" {
			t.Errorf("of a port that is not published: status %d, %q", r.status, r.stdout)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		cmd := m.command(t, "port-forward", box, ":8001")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Errorf("%v", err)
		} else if address, to, _ := strings.Cut(strings.TrimSpace(line), " -> "); to != "8001" {
			t.Errorf("it says %q", line)
		} else {
			halfClose(t, address)
		}
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		if status := cmd.ProcessState.ExitCode(); status != 0 || stderr.Len() > 0 {
			t.Errorf("status %d\n%s", status, stderr.String())
		}
	})
}

// halfClose says all that it has to say, and hears the answer.
func halfClose(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(bytes.Repeat([]byte("x"), 300_000)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "hello 300000" {
		t.Errorf("%s: %q, %v", address, answer, err)
	}
}

// A sandbox without a network has published ports, too: by way of its loopback.
func TestVMPortWithoutNetwork(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "-d", "--name", "box", "--no-network", "-p", ":8000", "busybox", "sh", "-c", "while nc -l -p 8000 -e cat; do :; done")
	defer m.mustRun(t, "rm", "-f", "box")
	if r := m.run(t, nil, "exec", "box", "sh", "-c", "for i in $(seq 100); do grep -q :1F40 /proc/net/tcp6 && break; sleep 0.1; done; ls /sys/class/net"); r.stdout != "lo\n" {
		t.Errorf("its interfaces are %q\n%s", r.stdout, r.stderr)
	}
	conn, err := net.Dial("tcp", m.portOf(t, "box", "8000"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "hello" {
		t.Errorf("%q, %v", answer, err)
	}
}
