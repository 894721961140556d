// Command network lets a sandbox reach one service and no other, opens another while it
// runs, and reads what it tried.
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
	// A server of this host stands for one of the Internet.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "welcome") }))
	defer server.Close()
	port := netip.MustParseAddrPort(server.Listener.Addr().String()).Port()
	rules, err := api.ParseRules(fmt.Sprintf("one.test:%d", port), fmt.Sprintf("two.test:%d", port))
	if err != nil {
		return err
	}
	config := api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")}
	config.Network.Allow = rules[:1]
	config.Network.Resolve = []api.HostIPMapping{{Host: "one.test", IP: "127.0.0.1"}, {Host: "two.test", IP: "127.0.0.1"}}
	sb, err := sandbox.New(ctx, config)
	if err != nil {
		return err
	}
	defer sb.Close()

	reaches := func(name string) bool {
		err := sb.Command(ctx, "wget", "-qO-", fmt.Sprintf("http://%s:%d/", name, port)).Run()
		fmt.Println(name, cmp.Or(err, errors.New("is reached")))
		return err == nil
	}
	one, two := reaches("one.test"), reaches("two.test")
	if _, err := sb.Policy().Allow(ctx, rules[1]); err != nil {
		return err
	}
	if opened := reaches("two.test"); !one || two || !opened {
		return fmt.Errorf("one.test %v, two.test %v, then %v; want true, false, true", one, two, opened)
	}

	for e, err := range sb.Events(ctx) {
		if err != nil {
			return err
		}
		fmt.Println(e.Verdict, e.Kind, e.Target(), e.Reason, e.Hint)
		if e.Kind == api.EventRequest && e.Name == "two.test" {
			return nil // else the loop goes on until the sandbox ends
		}
	}
	return errors.New("no event tells of the request to two.test")
}
