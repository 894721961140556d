package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// A sandbox from an image, and a command in it.
func Example() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	out, err := sb.Command(ctx, "uname", "-s").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("a kernel of its own: %s", out)
	// Output:
	// a kernel of its own: Linux
}

// Options say how a sandbox is made, its configuration what it is.
func ExampleOptions_New() {
	ctx := context.Background()
	options := sandbox.Options{
		Name:     "build",
		Progress: func(p sandbox.Progress) { log.Printf("%s: %d of %d", p.Task, p.Done, p.Total) },
	}
	sb, err := options.New(ctx, api.Config{
		Image:   "busybox",
		Env:     map[string]string{"GREETING": "hello"},
		User:    "nobody",
		WorkDir: "/tmp",
		Memory:  256 << 20,
		Timeout: time.Minute,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	out, err := sb.Command(ctx, "sh", "-c", `echo "$GREETING from $(id -un) in $PWD"`).Output()
	if err != nil {
		log.Fatal(err)
	}
	info, err := sb.Info(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %s: %s", info.Name, info.Status, out)
	// Output:
	// build running: hello from nobody in /tmp
}

// A command is prepared and run as with os/exec, input and exit status
// included.
func ExampleSandbox_Command() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	count := sb.Command(ctx, "wc", "-l")
	count.Stdin = strings.NewReader("one\ntwo\nthree\n")
	out, err := count.Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)

	list := sb.Command(ctx, "ls", "/nowhere")
	list.Env = []string{"LC_ALL=C"}
	_, err = list.Output()
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		fmt.Printf("status %d: %s", exit.Code, exit.Stderr)
	}
	// Output:
	// 3
	// status 1: ls: /nowhere: No such file or directory
}

// The first command is what the configuration and the image say is to run.
func ExampleSandbox_Main() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{
		Image:   "busybox",
		Command: []string{"sh", "-c", "echo working; exit 3"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	main := sb.Main(ctx)
	main.Stdout, main.Stderr = os.Stdout, os.Stderr
	fmt.Println(main.Run())
	// Output:
	// working
	// exit status 3
}

// Any process of the same user can reach a sandbox: by its name, its id, or the
// beginning of its id.
func ExampleAttach() {
	ctx := context.Background()
	own, err := sandbox.Options{Name: "web"}.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer own.Close()

	// Elsewhere:
	sb, err := sandbox.Attach(ctx, "web")
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close() // lets go of it: it runs on
	out, err := sb.Command(ctx, "echo", "hello").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)

	_, err = sandbox.Attach(ctx, "nosuch")
	fmt.Println(err, errors.Is(err, sandbox.ErrNotFound))
	// Output:
	// hello
	// sandbox "nosuch" not found true
}

// What there is, running or not. List looks at files and asks nobody.
func ExampleList() {
	ctx := context.Background()
	sb, err := sandbox.Options{Name: "quiet-otter"}.New(ctx, api.Config{
		Image:  "busybox",
		Labels: map[string]string{"job": "42"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	list, err := sandbox.List(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, info := range list {
		if info.Labels["job"] == "42" {
			fmt.Println(info.Name, info.Image, info.Status)
		}
	}
	// Output:
	// quiet-otter busybox running
}

// The guest's files are an fs.FS, so what takes one takes them; there are
// methods to write beside it.
func ExampleFS() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	files := sb.FS(ctx)
	if err := files.MkdirAll("srv/notes/old", 0o755); err != nil {
		log.Fatal(err)
	}
	if err := files.WriteFile("srv/notes/today", []byte("buy milk\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	text, err := fs.ReadFile(files, "srv/notes/today")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", text)
	err = fs.WalkDir(files, "srv", func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			fmt.Println(path, d.IsDir())
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = files.Open("srv/nowhere")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// buy milk
	// srv true
	// srv/notes true
	// srv/notes/old true
	// srv/notes/today false
	// true
}

// A port of the guest's loopback is dialled as http.Transport likes it; the
// guest needs no network for that.
func ExampleSandbox_DialContext() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	if err := sb.FS(ctx).WriteFile("srv/index.html", []byte("served from a sandbox\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := sb.Command(ctx, "httpd", "-p", "127.0.0.1:8080", "-h", "/srv").Run(); err != nil { // goes into the background
		log.Fatal(err)
	}

	transport := &http.Transport{DialContext: sb.DialContext}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	response, err := client.Get("http://localhost:8080/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s", response.Status, body)
	// Output:
	// 200 OK: served from a sandbox
}

// A sandbox that is kept can be stopped and started again, by this process or
// by another. Its disk is as it was; its processes are new ones.
func ExampleOptions_Start() {
	ctx := context.Background()
	options := sandbox.Options{Name: "box", Keep: true}
	sb, err := options.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer options.Remove(ctx, "box", true)
	if err := sb.Command(ctx, "sh", "-c", "echo kept >/root/note").Run(); err != nil {
		log.Fatal(err)
	}
	if err := sb.Stop(ctx, 10*time.Second); err != nil {
		log.Fatal(err)
	}
	if err := sb.Close(); err != nil { // returns when its folder is free for others
		log.Fatal(err)
	}
	info, err := options.Find(ctx, "box")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Status)

	sb, err = options.Start(ctx, "box")
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	out, err := sb.Command(ctx, "cat", "/root/note").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output:
	// stopped
	// kept
}

// Copies of a sandbox try different ways on from one moment.
func ExampleSandbox_Fork() {
	ctx := context.Background()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	if err := sb.Command(ctx, "sh", "-c", "echo prepared > /state").Run(); err != nil {
		log.Fatal(err)
	}

	copies, err := sb.Fork(ctx, 2)
	if err != nil {
		log.Fatal(err)
	}
	for i, c := range copies {
		defer c.Close()
		line := fmt.Sprintf("echo and copy %d >> /state; echo $(cat /state)", i)
		out, err := c.Command(ctx, "sh", "-c", line).Output()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s", out)
	}
	// Output:
	// prepared and copy 0
	// prepared and copy 1
}

// A snapshot is prepared once, and any number of sandboxes go on from it.
func ExampleOptions_Restore() {
	ctx := context.Background()
	base, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	if err := base.Command(ctx, "sh", "-c", "echo prepared > /state").Run(); err != nil {
		log.Fatal(err)
	}
	var options sandbox.Options
	snapshot, err := base.Snapshot(ctx, "example")
	if err != nil {
		log.Fatal(err)
	}
	defer options.RemoveSnapshot(snapshot.Name)

	saved, err := options.OpenSnapshot(ctx, "example")
	if err != nil {
		log.Fatal(err)
	}
	defer saved.Close()
	config := saved.Config()
	config.Env = map[string]string{"GREETING": "hello"}
	sb, err := options.Restore(ctx, saved, config)
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	out, err := sb.Command(ctx, "sh", "-c", "echo $GREETING, $(cat /state)").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output:
	// hello, prepared
}

// A sandbox reaches what it is given, which may change while it runs, and what it
// tries is told.
func ExampleSandbox_Policy() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello", r.Host) }))
	defer server.Close()
	address := netip.MustParseAddrPort(server.Listener.Addr().String())

	ctx := context.Background()
	config := api.Config{Image: "busybox"}
	config.Network.Resolve = []api.HostIPMapping{{Host: "api.test", IP: "127.0.0.1"}} // only for this example
	sb, err := sandbox.New(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	get := func() {
		url := fmt.Sprintf("http://api.test:%d/", address.Port())
		if out, err := sb.Command(ctx, "wget", "-qO-", url).Output(); err == nil {
			fmt.Println(strings.ReplaceAll(string(out), fmt.Sprint(address.Port()), "PORT"))
		}
	}
	get()
	rules, err := api.ParseRules(fmt.Sprintf("api.test:%d", address.Port()))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := sb.Policy().Allow(ctx, rules...); err != nil {
		log.Fatal(err)
	}
	get()

	for e, err := range sb.Events(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if e.Kind == api.EventLife {
			continue // that it was created, and started
		}
		fmt.Println(e.Kind, e.Verdict)
		if e.Kind == api.EventRequest {
			break
		}
	}
	// Output:
	// hello api.test:PORT
	//
	// name denied
	// policy allowed
	// name allowed
	// request allowed
}

// Requests and responses pass through functions of the program, on this host.
func ExampleHook() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Team"), " asks") }))
	defer server.Close()
	host := fmt.Sprintf("api.test:%d", netip.MustParseAddrPort(server.Listener.Addr().String()).Port())
	rules, err := api.ParseRules(host)
	if err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	options := sandbox.Options{Hooks: []sandbox.Hook{{
		Name: "reads only",
		Before: func(_ context.Context, r *sandbox.Request) error {
			if r.Method != http.MethodGet {
				return errors.New("only GET")
			}
			r.Header.Set("X-Team", "blue")
			return nil
		},
		After: func(_ context.Context, r *sandbox.Response) error {
			fmt.Println(r.Request.Method, r.Request.Path, r.Status)
			return nil
		},
	}}}
	config := api.Config{Image: "busybox"}
	config.Network.Allow = rules
	config.Network.Resolve = []api.HostIPMapping{{Host: "api.test", IP: "127.0.0.1"}} // only for this example
	sb, err := options.New(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	out, err := sb.Command(ctx, "wget", "-qO-", "http://"+host+"/jobs").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", out)
	out, _ = sb.Command(ctx, "wget", "-O-", "--post-data=x", "http://"+host+"/jobs").CombinedOutput()
	fmt.Println(strings.Contains(string(out), "403 Forbidden"))
	// Output:
	// GET /jobs 200
	// blue asks
	// true
}

// What the guest does with the files of a mount passes through functions of the program.
func ExampleFileHook() {
	ctx := context.Background()
	options := sandbox.Options{FileHooks: []sandbox.FileHook{{
		Ops:  []api.FileOp{api.FileDelete},
		Path: "*.lock",
		Before: func(_ context.Context, op *sandbox.FileOp) error {
			fmt.Println("asked to", op.Kind, op.Path)
			return errors.New("locks stay")
		},
	}}}
	sb, err := options.New(ctx, api.Config{
		Image:  "busybox",
		Mounts: []api.Mount{{Target: "/work", Mode: api.MountMemory}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	out, err := sb.Command(ctx, "sh", "-c", "cd /work; touch a.lock b; rm a.lock b; ls").CombinedOutput()
	fmt.Printf("%s%v\n", out, err)
	// Output:
	// asked to delete a.lock
	// rm: can't remove 'a.lock': Permission denied
	// a.lock
	// <nil>
}
