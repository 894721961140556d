// Command hooks changes what a sandbox asks a server for, and forbids some of it, by
// functions of its own.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	// The server is on this host's loopback; to the sandbox it is api.test.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for team %s", r.Method, r.Header.Get("X-Team"))
	}))
	defer server.Close()
	host := fmt.Sprintf("api.test:%d", netip.MustParseAddrPort(server.Listener.Addr().String()).Port())
	rules, err := api.ParseRules(host)
	if err != nil {
		return err
	}
	options := sandbox.Options{Hooks: []sandbox.Hook{{
		Name:  "read only, with a team",
		Hosts: []string{"api.test"},
		Before: func(_ context.Context, r *sandbox.Request) error {
			if r.Method != http.MethodGet {
				return errors.New("only GET") // the guest gets a 403
			}
			r.Header.Set("X-Team", "agents")
			return nil
		},
		After: func(_ context.Context, r *sandbox.Response) error {
			log.Print(r.Request.Method, " ", r.Request.Path, ": ", r.Status)
			return nil
		},
	}}}
	config := api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")}
	config.Network.Allow = rules
	config.Network.Resolve = []api.HostIPMapping{{Host: "api.test", IP: "127.0.0.1"}}
	sb, err := options.New(ctx, config)
	if err != nil {
		return err
	}
	defer sb.Close()

	got, err := sb.Command(ctx, "wget", "-qO-", "http://"+host+"/v1/jobs").Output()
	if err != nil || string(got) != "GET for team agents" {
		return fmt.Errorf("the server's answer is %q, %v", got, err)
	}
	err = sb.Command(ctx, "wget", "-qO-", "--post-data=x", "http://"+host+"/v1/jobs").Run()
	if _, refused := errors.AsType[*sandbox.ExitError](err); !refused {
		return fmt.Errorf("a POST has passed: %v", err)
	}
	return nil
}
