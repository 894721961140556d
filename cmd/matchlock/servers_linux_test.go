package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// servers are real ones: Debian's nginx, sshd and PostgreSQL, and in this process
// an application, on 127.0.0.1 of this host. Sandboxes know them under names that
// nobody else knows:
//
//	web.test   nginx: files, a Python index, a Debian archive, a git repository
//	app.test   the application
//	api.test   the same, where secrets go
//	git.test   sshd, with git
//	sql.test   PostgreSQL
type servers struct {
	dir   string // files below, the folders of servers and what guests bring along
	tools string // where programs are that are not installed
	ca    string // file of the certificate that has signed those of all names

	web, plain, git, sql int // ports; plain is nginx without TLS
	app                  *application
}

// clientFiles is the folder of dir that guests get: ca.pem, key, known_hosts.
const clientFiles = "client"

// serve starts all of them. They end with the test.
func serve(t *testing.T) *servers {
	t.Helper()
	s := &servers{dir: t.TempDir(), tools: filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "tools")}
	for _, folder := range []string{clientFiles, "www/private"} {
		if err := os.MkdirAll(filepath.Join(s.dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.ca = filepath.Join(s.dir, clientFiles, "ca.pem")
	certificate := s.certify(t, "web.test", "app.test", "api.test", "other.test")
	s.fill(t)
	s.app = startApplication(t, certificate, filepath.Join(s.dir, "www", "private"))
	var started sync.WaitGroup
	for _, start := range []func(*testing.T) error{s.startWeb, s.startSSH, s.startSQL} {
		started.Go(func() {
			if err := start(t); err != nil {
				t.Error(err)
			}
		})
	}
	if started.Wait(); t.Failed() {
		t.FailNow()
	}
	return s
}

// file writes a file below dir, and returns its path.
func (s *servers) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certify makes an authority, and a certificate for names, which is in the files
// cert.pem and key.pem as well.
func (s *servers) certify(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	sign := func(template, parent *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			by = key
		}
		// The guest's clock is the host's, give or take.
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca, caKey := sign(authority, authority, nil)
	s.file(t, clientFiles+"/ca.pem", string(ca))
	leaf, key := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	s.file(t, "cert.pem", string(leaf))
	s.file(t, "key.pem", string(keyPEM))
	certificate, err := tls.X509KeyPair(leaf, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// run has a program make something in dir.
func (s *servers) run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	// Neither the user's settings nor the host's.
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@web.test",
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@web.test")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// start runs a server until the test ends, and waits until its port answers. What
// it has said is shown when the test fails.
func (s *servers) start(t *testing.T, port int, cmd *exec.Cmd) error {
	var said bytes.Buffer
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+s.libraries())
	cmd.Stdout, cmd.Stderr = &said, &said
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // by our signal, or as it has said
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not end", cmd.Path)
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, said.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", hostPort(port))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("%s has ended: %s", cmd.Path, said.String())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", cmd.Path, err)
		}
	}
}

// libraries are the folders of those that came with the servers.
func (s *servers) libraries() string {
	folders, _ := filepath.Glob(filepath.Join(s.tools, "usr", "lib", "*-linux-gnu")) // of a pattern that is good
	more, _ := filepath.Glob(filepath.Join(s.tools, "lib", "*-linux-gnu"))
	return strings.Join(slices.Concat(folders, more), ":")
}

func (s *servers) startWeb(t *testing.T) error {
	s.web, s.plain = freePort(t), freePort(t)
	config := s.file(t, "nginx.conf", fmt.Sprintf(`
user root;
daemon off;
worker_processes 1;
pid nginx.pid;
events {}
http {
	access_log off;
	client_body_temp_path nginx-body;
	proxy_temp_path nginx-proxy;
	fastcgi_temp_path nginx-fastcgi;
	uwsgi_temp_path nginx-uwsgi;
	scgi_temp_path nginx-scgi;
	server {
		listen 127.0.0.1:%d ssl http2;
		listen 127.0.0.1:%d;
		ssl_certificate cert.pem;
		ssl_certificate_key key.pem;
		root www;
		location = /protocol {
			default_type text/plain;
			return 200 "$server_protocol $host\n";
		}
		location /simple/ { index index.html; default_type text/html; }
	}
}
`, s.web, s.plain))
	return s.start(t, s.web, exec.Command(filepath.Join(s.tools, "usr/sbin/nginx"), "-p", s.dir, "-c", config, "-e", "stderr"))
}

// startSSH starts sshd in a namespace of its own, where its files and users are as
// it wants to have them: git is the only one that can log in.
func (s *servers) startSSH(t *testing.T) error {
	s.git = freePort(t)
	s.run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "host_key")
	s.run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", clientFiles+"/key")
	public, err := os.ReadFile(filepath.Join(s.dir, "host_key.pub"))
	if err != nil {
		return err
	}
	s.file(t, clientFiles+"/known_hosts", fmt.Sprintf("[git.test]:%d %s", s.git, public))
	s.file(t, "passwd", fmt.Sprintf("root:x:0:0::/:/bin/sh\nsshd:x:74:65534::/run/sshd:/usr/sbin/nologin\ngit:x:0:0::%s:/bin/sh\n", s.dir))
	config := s.file(t, "sshd_config", fmt.Sprintf(`
ListenAddress 127.0.0.1:%d
HostKey %[2]s/host_key
PidFile none
AuthorizedKeysFile %[2]s/client/key.pub
StrictModes no
UsePAM no
AllowUsers git
PermitRootLogin prohibit-password
`, s.git, s.dir))
	return s.start(t, s.git, exec.Command("unshare", "--mount", "sh", "-ec", `
mount --bind passwd /etc/passwd
mount -t tmpfs tmpfs /run
mkdir -m 0755 /run/sshd
exec "$0" -D -e -f "$1"`, filepath.Join(s.tools, "usr/sbin/sshd"), config))
}

// startSQL starts PostgreSQL. It refuses to be root, so it is nobody, in a namespace
// in which nobody is who owns its files.
func (s *servers) startSQL(t *testing.T) error {
	found, err := filepath.Glob(filepath.Join(s.tools, "usr/lib/postgresql/*/bin"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("no PostgreSQL in %s: run scripts/test-vm.sh", s.tools)
	}
	program := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(found[0], name), args...)
		mapping := []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}
		return cmd
	}
	initdb := program("initdb", "-D", filepath.Join(s.dir, "sql"), "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
	initdb.Env = append(os.Environ(), "LD_LIBRARY_PATH="+s.libraries())
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.sql = freePort(t)
	return s.start(t, s.sql, program("postgres", "-D", filepath.Join(s.dir, "sql"), "-c", "listen_addresses=127.0.0.1", "-c", "port="+strconv.Itoa(s.sql),
		"-c", "unix_socket_directories=", "-c", "jit=off", "-c", "fsync=off"))
}

// freePort is one that nobody listens at, just now.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", hostPort(0))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func hostPort(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
