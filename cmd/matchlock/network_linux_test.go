package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

// TestVMNetwork has a Debian guest's programs use real servers, in two sandboxes: one
// whose TLS passes as it is, and one whose TLS is looked into.
func TestVMNetwork(t *testing.T) {
	m := install(t)
	m.mustRun(t, "image", "import", "debian-12", filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "images", "debian-12.tar"))
	s := serve(t)
	t.Run("boxes", func(t *testing.T) {
		t.Run("spliced", func(t *testing.T) {
			t.Parallel()
			testSpliced(t, m.apart(t), s)
		})
		t.Run("intercepted", func(t *testing.T) {
			t.Parallel()
			testIntercepted(t, m.apart(t), s)
		})
	})
	m.leavesNothing(t)
}

// create makes a detached sandbox that knows the servers by their names.
func (m *installed) create(t *testing.T, s *servers, name string, flags ...string) {
	t.Helper()
	args := []string{"run", "-d", "--name", name, "-m", "512m", "--host-port", strconv.Itoa(s.plain)}
	for _, host := range []string{"web.test", "app.test", "api.test", "git.test", "sql.test", "other.test"} {
		args = append(args, "--resolve", host+":127.0.0.1")
	}
	for _, rule := range []string{s.at("web.test", s.web), s.at("web.test", s.plain), s.at("app.test", s.app.port), s.at("git.test", s.git), s.at("sql.test", s.sql), s.at("app.test", s.app.datagrams) + "/udp"} {
		args = append(args, "--allow-host", rule)
	}
	for _, v := range []string{
		"WEB=https://" + s.at("web.test", s.web), "PLAIN=" + strconv.Itoa(s.plain), "APP=https://" + s.at("app.test", s.app.port),
		"API=https://" + s.at("api.test", s.app.port), "DATAGRAMS=" + strconv.Itoa(s.app.datagrams), "GIT=" + strconv.Itoa(s.git), "SQL=" + strconv.Itoa(s.sql), "DIR=" + s.dir,
	} {
		args = append(args, "-e", v)
	}
	args = slices.Concat(args, flags, []string{"debian-12", "sleep", "infinity"})
	r := m.run(t, []string{"TOKEN=" + theSecret}, args...)
	if r.status != 0 {
		t.Fatalf("status %d\n%s\n%s", r.status, r.stderr, r.call)
	}
	m.mustRun(t, "cp", filepath.Join(s.dir, clientFiles), name+":/client")
}

// at is NAME:PORT.
func (s *servers) at(name string, port int) string { return name + ":" + strconv.Itoa(port) }

// events are what a sandbox did, in order.
func (m *installed) events(t *testing.T, box string, flags ...string) (all []api.Event) {
	t.Helper()
	r := m.run(t, nil, slices.Concat([]string{"events", "--json"}, flags, []string{box})...)
	if r.status != 0 {
		t.Fatalf("events: status %d\n%s", r.status, r.stderr)
	}
	for lines := bufio.NewScanner(strings.NewReader(r.stdout)); lines.Scan(); {
		var e api.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		all = append(all, e)
	}
	return all
}

// refusals are the refusals of a sandbox, once its log has one for each of wants,
// whose Kind, Name or Address, Port and Hint count.
func (m *installed) refusals(t *testing.T, box string, wants []api.Event) (all []api.Event) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all = m.events(t, box, "--denied")
		missing := slices.DeleteFunc(slices.Clone(wants), func(want api.Event) bool {
			return slices.ContainsFunc(all, func(e api.Event) bool {
				return e.Kind == want.Kind && e.Name == want.Name && (want.Address == "" || e.Address == want.Address) &&
					e.Port == want.Port && e.Hint == want.Hint && e.Reason != "" && e.Verdict == api.Denied
			})
		})
		if len(missing) == 0 {
			return all
		}
		if time.Now().After(deadline) {
			for _, e := range missing {
				t.Errorf("no event %s %s%s:%d with the hint %q", e.Kind, e.Name, e.Address, e.Port, e.Hint)
			}
			t.Fatal(m.run(t, nil, "events", "--json", "--denied", box).stdout)
		}
	}
}

// saw checks that the log of events of a sandbox tells of its clients' flows.
func (m *installed) saw(t *testing.T, box string, s *servers, inspected bool) {
	t.Helper()
	type kind struct {
		name      string
		port      int
		protocol  string
		inspected bool
	}
	tls := "tls"
	if inspected {
		tls = "https"
	}
	missing := map[kind]bool{}
	for _, k := range []kind{
		{"web.test", s.web, tls, inspected}, {"web.test", s.plain, "http", true}, {"app.test", s.app.port, tls, inspected},
		{"git.test", s.git, "tcp", false}, {"sql.test", s.sql, "tcp", false},
	} {
		missing[k] = true
	}
	requests := map[string]bool{"/protocol": true, "/events": true, "/socket": true, "/test.Echo/Talk": true, "/simple/tiny/": true}
	names := map[string]bool{}
	for _, e := range m.events(t, box) {
		switch {
		case e.Verdict == api.Denied && e.Kind != api.EventFrame:
			t.Errorf("denied: %+v", e)
		case e.Kind == api.EventName:
			names[e.Name] = true
		case e.Kind == api.EventFlow:
			k := kind{e.Name, int(e.Port), e.Protocol, e.Inspected}
			delete(missing, k)
			if e.Name == api.HostGateway {
				continue
			}
			if e.Address != "127.0.0.1" || e.Rule == "" || e.Sent == 0 || e.Received == 0 || e.Flow == 0 {
				t.Errorf("flow without all that is known: %+v", e)
			}
		case e.Kind == api.EventRequest:
			delete(requests, e.Path)
		}
	}
	if len(missing) > 0 {
		t.Errorf("no flows %v", missing)
	}
	if inspected && len(requests) > 0 {
		t.Errorf("no requests %v", requests)
	}
	if !names["web.test"] || !names["git.test"] {
		t.Errorf("names are %v", names)
	}
}

const theSecret = "ghp_TheRealValueOfTheToken42"

// testSpliced is about a sandbox whose TLS passes as it is but to api.test, where
// its secret goes.
func testSpliced(t *testing.T, m *installed, s *servers) {
	m.create(t, s, "spliced", "--secret", "TOKEN@api.test", "--allow-host", s.at("api.test", s.app.port), "--upstream-ca", s.ca, "-p", ":8000")
	defer m.mustRun(t, "rm", "-f", "spliced")
	if r := m.call(t, "spliced", `cat /client/ca.pem >>$SSL_CERT_FILE`); r.status != 0 {
		t.Fatal(r.stderr)
	}
	t.Run("clients", func(t *testing.T) {
		m.work(t, "spliced", s.clients("test authority"))
		m.saw(t, "spliced", s, false)
	})
	t.Run("secrets", func(t *testing.T) { testSecrets(t, m, "spliced", s) })
	t.Run("copies", func(t *testing.T) { testNetworkCopies(t, m, "spliced", s) })
	t.Run("again", func(t *testing.T) { testNetworkAgain(t, m, "spliced", s) })
	t.Run("revoked", func(t *testing.T) { testRevoked(t, m, "spliced", s) })
}

// testIntercepted is about a sandbox whose TLS is all looked into.
func testIntercepted(t *testing.T, m *installed, s *servers) {
	m.create(t, s, "intercepted", "--intercept", "--upstream-ca", s.ca, "-p", ":8000", "-p", ":8001", "-p", ":8002/udp")
	defer m.mustRun(t, "rm", "-f", "intercepted")
	t.Run("clients", func(t *testing.T) {
		m.work(t, "intercepted", s.clients("matchlock.*"))
		m.saw(t, "intercepted", s, true)
	})
	t.Run("refusals", func(t *testing.T) { testNetworkRefusals(t, m, "intercepted", s) })
	t.Run("ports", func(t *testing.T) { testPorts(t, m, "intercepted") })
	t.Run("rules", func(t *testing.T) { testRules(t, m, "intercepted", s) })
}

// testNetworkRefusals tries what no rule allows: it fails at once, and is told.
func testNetworkRefusals(t *testing.T, m *installed, box string, s *servers) {
	flow := func(name, address string, port int, hint string) api.Event {
		return api.Event{Kind: api.EventFlow, Name: name, Address: address, Port: uint16(port), Hint: hint}
	}
	request := func(name string, port int, hint string) api.Event {
		return api.Event{Kind: api.EventRequest, Name: name, Port: uint16(port), Hint: hint}
	}
	const other = "--allow-host other.test, and connect to that"
	// A refusal takes at most 2 seconds.
	tests := []struct {
		name   string
		client client
		event  api.Event
	}{
		{"name", client{"", `curl --max-time 2 https://other.test:$PLAIN/ 2>&1; echo $?`, `curl: \(6\) Could not resolve host: other.test\n6\n`},
			api.Event{Kind: api.EventName, Name: "other.test", Hint: "--allow-host other.test"}},
		{"port", client{"", `curl --max-time 2 https://web.test:1/ 2>/dev/null; echo $?`, `7\n`}, flow("web.test", "", 1, "--allow-host web.test:1")},
		{"address", client{"", `curl --max-time 2 http://10.1.2.3/ 2>/dev/null; echo $?`, `7\n`}, flow("", "10.1.2.3", 80, "--allow-host 10.1.2.3:80")},
		{"metadata", client{"", `curl --max-time 2 http://169.254.169.254/latest/ 2>/dev/null; echo $?`, `7\n`}, flow("", "169.254.169.254", 80, "--allow-host 169.254.169.254:80")},
		{"UDP", client{"", python(`
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
s.connect(("web.test", 9))
s.send(b"x")
try:
    s.recv(1)
except ConnectionRefusedError:
    print("refused")`), `refused\n`}, flow("web.test", "", 9, "--allow-host web.test:9/udp")},
		{"other host in clear", client{"", `curl --max-time 2 -w '%{http_code}\n' -H 'Host: other.test' http://web.test:$PLAIN/digits`, `(?s).*other\.test.*--allow-host other\.test.*\n403\n`},
			request("web.test", s.plain, other)},
		{"other host inside TLS", client{"", `curl --max-time 2 --http1.1 -w '%{http_code}\n' -H 'Host: other.test' $WEB/digits`, `(?s).*other\.test.*\n4..\n`},
			request("web.test", s.web, other)},
		{"other authority", client{"", `curl --max-time 2 --http2 -w '%{http_code}\n' -H 'Host: other.test' $WEB/digits`, `(?s).*other\.test.*\n421\n`},
			request("web.test", s.web, other)},
		{"other server name", client{"", `openssl s_client -connect ${WEB#https://} -servername other.test </dev/null >/dev/null 2>&1; echo $?`, `1\n`},
			flow("web.test", "", s.web, other)},
	}
	var clients []client
	var events []api.Event
	for _, tt := range tests {
		tt.client.name = tt.name
		clients, events = append(clients, tt.client), append(events, tt.event)
	}
	m.work(t, box, clients)
	m.refusals(t, box, events)
	// The guest's own file comes last.
	r := m.call(t, box, `for i in $(seq 100); do grep -q "server name" /run/matchlock/denied && break; sleep 0.1; done; cat /run/matchlock/denied`)
	for _, want := range []string{"name other.test", "flow web.test:1: ", "would be allowed by --allow-host web.test:9/udp", "would be allowed by --allow-host 10.1.2.3:80"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the guest is not told %q:\n%s", want, r.stdout)
		}
	}
}
