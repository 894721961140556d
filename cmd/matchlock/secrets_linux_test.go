package main

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// saw checks which values of Authorization the application has got.
func (s *servers) saw(t *testing.T, want ...string) {
	t.Helper()
	if got := s.app.saw(); !slices.Equal(got, want) {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}

// bearer is a call whose answer has what the server saw, in its header and body.
const bearer = `curl -i -H "Authorization: Bearer $TOKEN" $API/echo`

// placeholder is what the guest has in the place of the secret.
func (m *installed) placeholder(t *testing.T, box string) string {
	t.Helper()
	r := m.run(t, nil, "exec", box, "printenv", "TOKEN")
	placeholder := strings.TrimSpace(r.stdout)
	if !strings.HasPrefix(placeholder, "SANDBOX_SECRET_") || len(placeholder) != len("SANDBOX_SECRET_")+32 {
		t.Fatalf("the guest's TOKEN is %q", placeholder)
	}
	return placeholder
}

// hidden has the guest run a script whose request has the secret; what comes back
// has the placeholder, twice.
func (m *installed) hidden(t *testing.T, box, script, placeholder string) {
	t.Helper()
	r := m.call(t, box, script)
	if r.status != 0 || strings.Count(r.stdout, "Bearer "+placeholder) != 2 {
		t.Errorf("status %d; want the placeholder twice in\n%s%s", r.status, r.stdout, r.stderr)
	}
	if strings.Contains(r.stdout, "RealValue") {
		t.Errorf("the guest sees the value:\n%s", r.stdout)
	}
}

func testSecrets(t *testing.T, m *installed, box string, s *servers) {
	s.app.mu.Lock()
	s.app.password = theSecret
	s.app.mu.Unlock()
	s.app.saw()
	placeholder := m.placeholder(t, box)
	for _, flag := range []string{"--http1.1", "--http2"} {
		m.hidden(t, box, bearer+" "+flag, placeholder)
		s.saw(t, "Bearer "+theSecret)
	}
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + theSecret))
	r := m.call(t, box, `curl -u "user:$TOKEN" $API/echo`)
	if encoded := base64.StdEncoding.EncodeToString([]byte("user:" + placeholder)); r.status != 0 || strings.Contains(r.stdout, basic) || !strings.Contains(r.stdout, "Basic ") {
		t.Errorf("status %d, %q; want %q", r.status, r.stdout, encoded)
	}
	s.saw(t, "Basic "+basic)
	m.work(t, box, []client{
		{"git credential", `cd $(mktemp -d) && git -c credential.helper='!f() { echo username=git; echo "password=$TOKEN"; }; f' clone -q $API/private/repo.git && cat repo/hello`, "hello from git\n"},
		eventStream("$API"), // whose events are searched, and not held back
		{"in clear", `curl -w '%{http_code}\n' -H "Authorization: Bearer $TOKEN" http://web.test:$PLAIN/digits`, "(?s).*TOKEN.*\n403\n"},
	})
	m.refusals(t, box, []api.Event{
		{Kind: api.EventRequest, Name: "web.test", Port: uint16(s.plain), Hint: "https://web.test"},
	})

	const second = "ghp_AnotherRealValueOfIt"
	if r := m.run(t, []string{"TOKEN=" + second}, "secret", "rotate", box, "TOKEN"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	m.hidden(t, box, bearer, placeholder)
	s.saw(t, "Bearer "+second)
	if r := m.run(t, []string{"TOKEN=" + theSecret}, "secret", "rotate", box, "TOKEN"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	m.hidden(t, box, bearer, placeholder)
	s.saw(t, "Bearer "+theSecret)

	for _, args := range [][]string{{"inspect", box}, {"events", "--json", box}, {"logs", box}} {
		if r := m.run(t, nil, args...); strings.Contains(r.stdout+r.stderr, "RealValue") {
			t.Errorf("%s tells the value", args[0])
		}
	}
	found := false
	for _, e := range m.events(t, box) {
		found = found || e.Kind == api.EventRequest && e.Name == "api.test" && e.Inspected && slices.Equal(e.Secrets, []string{"TOKEN"}) && e.Status == 200
	}
	if !found {
		t.Error("no event tells that TOKEN was put in")
	}
}

// address is what the guest knows as a name's.
func (m *installed) address(t *testing.T, box, name string) string {
	t.Helper()
	r := m.run(t, nil, "exec", box, "getent", "hosts", name)
	fields := strings.Fields(r.stdout)
	if r.status != 0 || len(fields) < 2 || !strings.HasPrefix(fields[0], "198.1") {
		t.Fatalf("%s: status %d, %q\n%s", name, r.status, r.stdout, r.stderr)
	}
	return fields[0]
}

// testNetworkCopies forks a sandbox that has a connection, a secret and a published
// port, and has another go on from a snapshot of it.
func testNetworkCopies(t *testing.T, m *installed, box string, s *servers) {
	placeholder, names := m.placeholder(t, box), map[string]string{}
	for _, name := range []string{"web.test", "app.test", "api.test"} {
		names[name] = m.address(t, box, name)
	}
	sameNames := func(t *testing.T, box string) {
		t.Helper()
		for name, address := range names {
			if got := m.address(t, box, name); got != address {
				t.Errorf("%s was %s and is %s", name, address, got)
			}
		}
	}
	m.mustRun(t, "exec", "-d", box, "python3", "-c", portServers)
	m.hold(t, box, "api.test", "$API", "/tmp/held")
	s.app.saw()

	t.Run("fork", func(t *testing.T) {
		m.mustRun(t, "fork", "--name", "copy", box)
		defer m.mustRun(t, "rm", "-f", "copy")
		if r := m.call(t, "copy", `for i in $(seq 100); do [ -s /tmp/held.status ] && break; sleep 0.1; done; cat /tmp/held.status`); r.stdout == "" || r.stdout == "0\n" {
			t.Errorf("the copy's connection is not reset: %q", r.stdout)
		}
		s.app.more <- "still here"
		if r := m.call(t, box, `for i in $(seq 100); do grep -q still /tmp/held && break; sleep 0.1; done; cat /tmp/held; cat /tmp/held.status 2>&1`); !strings.HasPrefix(r.stdout, "held\nstill here\n") || !strings.Contains(r.stdout, "No such file") {
			t.Errorf("the connection that was before: %q", r.stdout)
		}
		m.mustRun(t, "fork", "--name", "without", "--no-secrets", box)
		if r := m.call(t, "without", bearer); !strings.Contains(r.stdout, " 403") {
			t.Errorf("a copy without secrets: %s%s", r.stdout, r.stderr)
		}
		m.mustRun(t, "rm", "-f", "without")
		s.saw(t)
		sameNames(t, "copy")
		m.hidden(t, "copy", bearer, placeholder)
		s.saw(t, "Bearer "+theSecret)
		if r := m.call(t, "copy", `curl $WEB/digits`); r.stdout != "0123456789" {
			t.Errorf("spliced: %q\n%s", r.stdout, r.stderr)
		}
		first, second := m.portOf(t, box, "8000"), m.portOf(t, "copy", "8000")
		if first == second {
			t.Errorf("both are published at %s", first)
		}
		halfClose(t, first)
		halfClose(t, second)
	})
	t.Run("snapshot", func(t *testing.T) {
		m.mustRun(t, "snapshot", "create", box, "kept")
		defer m.mustRun(t, "snapshot", "rm", "kept")
		goOn := func(flags ...string) {
			t.Helper()
			r := m.run(t, []string{"TOKEN=" + theSecret}, slices.Concat([]string{"run", "-d", "--name", "later", "--snapshot", "kept"}, flags)...)
			if r.status != 0 {
				t.Fatal(r.stderr)
			}
		}
		goOn()
		sameNames(t, "later")
		if r := m.call(t, "later", "TOKEN="+placeholder+"\n"+bearer); !strings.Contains(r.stdout, " 403") {
			t.Errorf("without the secret: %s%s", r.stdout, r.stderr)
		}
		s.saw(t)
		m.mustRun(t, "rm", "-f", "later")
		goOn("--secret", "TOKEN@api.test")
		m.hidden(t, "later", "TOKEN="+placeholder+"\n"+bearer, placeholder)
		s.saw(t, "Bearer "+theSecret)
		m.mustRun(t, "rm", "-f", "later")
	})
}

// testRevoked takes the secret's value away, for good.
func testRevoked(t *testing.T, m *installed, box string, s *servers) {
	refused := func() {
		t.Helper()
		if r := m.call(t, box, bearer); !strings.Contains(r.stdout, " 403") {
			t.Errorf("revoked: %s%s", r.stdout, r.stderr)
		}
		s.saw(t)
	}
	placeholder := m.placeholder(t, box)
	s.app.saw()
	m.mustRun(t, "secret", "revoke", box, "TOKEN")
	refused()
	if r := m.run(t, []string{"TOKEN=" + theSecret}, "secret", "rotate", box, "TOKEN"); r.status != 125 || !strings.Contains(r.stderr, "not found") {
		t.Errorf("rotate of what was revoked: status %d\n%s", r.status, r.stderr)
	}
	m.mustRun(t, "stop", "-t", "0", box)
	m.mustRun(t, "start", box)
	bearer := "TOKEN=" + placeholder + "\n" + bearer
	if r := m.call(t, box, bearer); !strings.Contains(r.stdout, " 403") {
		t.Errorf("revoked, and started again: %s%s", r.stdout, r.stderr)
	}
	// Without a rule there is no way to where it went.
	m.mustRun(t, "allow-list", "delete", box, s.at("api.test", s.app.port))
	if r := m.call(t, box, `curl $API/echo 2>/dev/null; echo $?`); r.stdout != "6\n" {
		t.Errorf("without a rule: %q", r.stdout)
	}
	s.saw(t)
}

// testNetworkAgain stops the sandbox and starts it again.
func testNetworkAgain(t *testing.T, m *installed, box string, s *servers) {
	placeholder, address := m.placeholder(t, box), m.address(t, box, "app.test")
	// A secret does not keep a rule from being taken away.
	m.mustRun(t, "allow-list", "delete", box, s.at("api.test", s.app.port))
	m.mustRun(t, "allow-list", "add", box, s.at("api.test", s.app.port))
	rules := m.run(t, nil, "allow-list", "show", box).stdout
	m.mustRun(t, "stop", "-t", "0", box)
	if r := m.run(t, nil, "start", box); r.status != 125 || !strings.Contains(r.stderr, "TOKEN") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("without the secret's source: status %d\n%s", r.status, r.stderr)
	}
	if r := m.run(t, []string{"TOKEN=" + theSecret}, "start", box); r.status != 0 {
		t.Fatal(r.stderr)
	}
	if got := m.address(t, box, "app.test"); got != address {
		t.Errorf("app.test was %s and is %s", address, got)
	}
	if got := m.placeholder(t, box); got != placeholder {
		t.Errorf("the placeholder was %s and is %s", placeholder, got)
	}
	if r := m.run(t, nil, "allow-list", "show", box); r.stdout != rules {
		t.Errorf("rules were\n%sand are\n%s", rules, r.stdout)
	}
	s.app.saw()
	m.hidden(t, box, bearer, placeholder)
	s.saw(t, "Bearer "+theSecret)
	m.work(t, box, []client{
		{"curl", `curl $WEB/digits`, "0123456789"},
		{"python", python(`
import os, requests
print(requests.get(os.environ["API"] + "/echo").status_code)
import urllib.request
print(urllib.request.urlopen(os.environ["API"] + "/echo").status)`), "200\n200\n"},
	})
}
