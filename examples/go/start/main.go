// Command start makes a sandbox from an image, runs one command in it, and removes it.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	// ^C ends ctx, and so the command or the start, and then the sandbox. A program that is
	// killed takes its sandboxes with it; the next start removes what they have left.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sb, err := sandbox.New(ctx, api.Config{
		Image:  cmp.Or(os.Getenv("IMAGE"), "busybox"),
		CPUs:   1,
		Memory: 256 * api.MiB,
		Env:    map[string]string{"GREETING": "hello"},
	})
	if err != nil {
		return err
	}
	defer sb.Close()

	ctx, cancel := context.WithTimeout(ctx, time.Minute) // of the command
	defer cancel()
	out, err := sb.Command(ctx, "sh", "-c", `echo "$GREETING from $(uname -s), $(id -un)"`).Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s", out)
	if got := strings.TrimSpace(string(out)); got != "hello from Linux, root" {
		return fmt.Errorf("the command says %q", got)
	}
	return nil
}
