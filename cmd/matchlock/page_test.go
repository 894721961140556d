package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// example.com, as the guest of a page finds it, is a server at this address.
const exampleAddress = "127.83.0.1"

// What docs/start.md has a newcomer type is typed here, in one shell, and says what the
// page shows, but for ids, times and ports.
func TestVMStartPage(t *testing.T) {
	m := install(t)
	page, err := os.ReadFile("../../docs/start.md")
	if err != nil {
		t.Fatal(err)
	}
	commands, want := typed(string(page))
	if len(commands) < 20 {
		t.Fatalf("the page has %d commands", len(commands))
	}

	listener, err := net.Listen("tcp", exampleAddress+":80")
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "<html><title>Example Domain</title>%s</html>\n", r.Host)
	})}
	go server.Serve(listener)
	defer server.Close()
	config := filepath.Join(m.home, "config", "config.yaml")
	if err := os.Mkdir(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("network: {resolve: [\"example.com:"+exampleAddress+"\"]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	const mark = "\x01\n"
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "%s\ns=$?; printf '\\001\\n'; (exit $s)\n", c)
	}
	defer m.run(t, nil, "rm", "--force", "web") // gone already, unless the page is wrong
	ctx, cancel := context.WithTimeout(t.Context(), patienceVM)
	defer cancel()
	shell := exec.CommandContext(ctx, "sh", "-c", "exec 2>&1\n"+script.String())
	shell.Dir = t.TempDir()
	shell.Env = append(os.Environ(), "MATCHLOCK_HOME="+m.home, "PATH="+filepath.Dir(m.program)+":"+os.Getenv("PATH"))
	out, err := shell.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said := strings.Split(string(out), mark)
	for i, c := range commands {
		if diff := cmp.Diff(timeless(want[i]), timeless(said[i])); diff != "" {
			t.Errorf("$ %s (-page +said)\n%s", c, diff)
		}
	}
}

// typed are the commands of a page's consoles, and what each says there.
func typed(page string) (commands, said []string) {
	console := false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "```"):
			console = line == "```console\n"
		case !console:
		case strings.HasPrefix(line, "$ "):
			commands, said = append(commands, strings.TrimSpace(line[2:])), append(said, "")
		default:
			said[len(said)-1] += line
		}
	}
	return commands, said
}

var changing = []struct {
	what *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`\b[a-z0-9]{12}\b`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`\]:\d+:`), "]:PORT:"},
	{regexp.MustCompile(`just now +|\d+ s( ago)? *|\d+ minutes?( ago)? *`), "LATELY "},
}

// timeless is a text without what is another one each time.
func timeless(text string) string {
	for _, c := range changing {
		text = c.what.ReplaceAllString(text, c.to)
	}
	return text
}
