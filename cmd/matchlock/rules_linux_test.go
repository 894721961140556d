package main

import (
	"testing"
	"time"
)

// testRules changes rules while connections are open.
func testRules(t *testing.T, m *installed, box string, s *servers) {
	rule := s.at("app.test", s.app.port)
	show := func(want string) {
		t.Helper()
		if r := m.run(t, nil, "allow-list", "show", box); r.status != 0 || r.stdout != want {
			t.Errorf("status %d, rules are\n%s%swant\n%s", r.status, r.stdout, r.stderr, want)
		}
	}
	others := "allow " + s.at("web.test", s.web) + "\nallow " + s.at("web.test", s.plain) + "\n"
	udp := s.at("app.test", s.app.datagrams) + "/udp"
	rest := "allow " + s.at("git.test", s.git) + "\nallow " + s.at("sql.test", s.sql) + "\nallow " + udp + "\n"
	show(others + "allow " + rule + "\n" + rest)

	m.hold(t, box, "app.test", "$APP", "/tmp/held")
	m.mustRun(t, "allow-list", "delete", box, rule)
	show(others + rest)
	s.app.isGone(t)
	if r := m.call(t, box, `until [ -s /tmp/held.status ]; do sleep 0.1; done; cat /tmp/held; curl $APP/echo >/dev/null 2>&1; echo $?`); r.stdout != "held\n7\n" { // its name exists by the rule about datagrams
		t.Errorf("after the rule is gone: %q", r.stdout)
	}
	m.mustRun(t, "allow-list", "add", box, rule, s.at("other.test", s.web))
	show(others + rest + "allow " + rule + "\nallow " + s.at("other.test", s.web) + "\n")
	if r := m.call(t, box, `curl -o /dev/null -w '%{http_code}\n' $APP/echo; curl https://other.test:${WEB##*:}/digits`); r.stdout != "200\n0123456789" {
		t.Errorf("after it is back: %q\n%s", r.stdout, r.stderr)
	}
	if r := m.run(t, nil, "allow-list", "delete", box, "nosuch.test"); r.status != 125 {
		t.Errorf("status %d for a rule that there is not\n%s", r.status, r.stderr)
	}
	// The last one removed leaves it sealed.
	m.mustRun(t, "allow-list", "delete", box, s.at("web.test", s.web), s.at("web.test", s.plain), s.at("git.test", s.git), s.at("sql.test", s.sql), udp, rule, s.at("other.test", s.web))
	show("")
	if r := m.call(t, box, `curl $WEB/digits 2>/dev/null; echo $?`); r.stdout != "6\n" {
		t.Errorf("sealed: %q", r.stdout)
	}
}

// hold has the guest keep a connection open, whose content goes to file; when it
// ends, curl's status goes to file.status.
func (m *installed) hold(t *testing.T, box, name, url, file string) {
	t.Helper()
	m.mustRun(t, "exec", "-d", box, "sh", "-c", "curl -sSN "+url+"/held >"+file+" 2>/dev/null; echo $? >"+file+".status")
	if r := m.call(t, box, "for i in $(seq 300); do grep -q held "+file+" && exit; sleep 0.1; done; exit 1"); r.status != 0 {
		t.Fatalf("no connection to %s comes to be", name)
	}
}

// isGone waits until a client of /held is gone.
func (a *application) isGone(t *testing.T) {
	t.Helper()
	select {
	case <-a.gone:
	case <-time.After(10 * time.Second):
		t.Error("the connection goes on")
	}
}
