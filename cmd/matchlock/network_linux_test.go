package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

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

// create makes a detached sandbox that knows the servers by their names. It ends
// with the test.
func (m *installed) create(t *testing.T, s *servers, name string, flags ...string) {
	t.Helper()
	args := []string{"run", "-d", "--name", name, "-m", "512m"}
	for _, host := range []string{"web.test", "app.test", "api.test", "git.test", "sql.test", "other.test"} {
		args = append(args, "--resolve", host+":127.0.0.1")
	}
	for _, rule := range []string{s.at("web.test", s.web), s.at("web.test", s.plain), s.at("app.test", s.app.port), s.at("git.test", s.git), s.at("sql.test", s.sql)} {
		args = append(args, "--allow-host", rule)
	}
	for _, v := range []string{
		"WEB=https://" + s.at("web.test", s.web), "PLAIN=" + strconv.Itoa(s.plain), "APP=https://" + s.at("app.test", s.app.port),
		"API=https://" + s.at("api.test", s.app.port), "GIT=" + strconv.Itoa(s.git), "SQL=" + strconv.Itoa(s.sql), "DIR=" + s.dir,
	} {
		args = append(args, "-e", v)
	}
	args = slices.Concat(args, flags, []string{"debian-12", "sleep", "infinity"})
	r := m.run(t, []string{"TOKEN=" + theSecret}, args...)
	if r.status != 0 {
		t.Fatalf("status %d\n%s\n%s", r.status, r.stderr, r.call)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.run(t, nil, "logs", name).stdout)
		}
	})
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

const theSecret = "the real value of TOKEN"

func testSpliced(t *testing.T, m *installed, s *servers) {
	m.create(t, s, "spliced")
	defer m.mustRun(t, "rm", "-f", "spliced")
	if r := m.call(t, "spliced", `cat /client/ca.pem >>$SSL_CERT_FILE`); r.status != 0 {
		t.Fatal(r.stderr)
	}
	m.work(t, "spliced", s.clients("test authority"))
	fmt.Println(m.run(t, nil, "events", "spliced").stdout)
}

func testIntercepted(t *testing.T, m *installed, s *servers) {
	m.create(t, s, "intercepted", "--intercept", "--upstream-ca", s.ca)
	defer m.mustRun(t, "rm", "-f", "intercepted")
	m.work(t, "intercepted", s.clients("matchlock.*"))
	fmt.Println(m.run(t, nil, "events", "intercepted").stdout)
}
