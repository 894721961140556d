// Command attach runs a command in a sandbox that somebody else has made, with
// `matchlock run -d --name NAME IMAGE COMMAND` or by a program, and that goes on
// afterwards.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: attach SANDBOX")
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name string) error {
	sb, err := sandbox.Attach(ctx, name)
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		list, _ := sandbox.List(ctx) // for the message alone
		for _, info := range list {
			log.Printf("there is %s, %s", info.Name, info.Status)
		}
		return err
	case errors.Is(err, sandbox.ErrNotRunning):
		return fmt.Errorf("%w: start it with `matchlock start %s`", err, name)
	case err != nil:
		return err
	}
	defer sb.Close() // lets go of it

	info, err := sb.Info(ctx)
	if err != nil {
		return err
	}
	out, err := sb.Command(ctx, "hostname").Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s, made from %s at %s, calls itself %s", info.Name, info.Image, info.Created.Format("15:04:05"), out)
	if got := strings.TrimSpace(string(out)); got != info.ID {
		return fmt.Errorf("the hostname is %q, want the id, %q", got, info.ID)
	}
	return nil
}
