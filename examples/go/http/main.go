// Command http asks a web server in a sandbox. The sandbox has no network: what leads to
// the server is the transport of the client.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
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
	sb, err := sandbox.New(ctx, api.Config{
		Image:   cmp.Or(os.Getenv("IMAGE"), "busybox"),
		Network: api.Network{None: true},
	})
	if err != nil {
		return err
	}
	defer sb.Close()
	if err := sb.FS(ctx).WriteFile("srv/index.html", []byte("hello from inside\n"), 0o644); err != nil {
		return err
	}
	// httpd listens and goes into the background. It ends with the sandbox.
	if err := sb.Command(ctx, "httpd", "-p", "127.0.0.1:8080", "-h", "/srv").Run(); err != nil {
		return err
	}

	transport := &http.Transport{DialContext: sb.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost:8080/", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// The guest is not trusted, how much it answers included.
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s", response.Status, body)
	if string(body) != "hello from inside\n" {
		return fmt.Errorf("the server says %q", body)
	}
	return nil
}
