// Command fork prepares a sandbox once and goes on from there several times: by copies of
// it while it runs, and by a snapshot, which stays.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sb, err := sandbox.New(ctx, api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")})
	if err != nil {
		return err
	}
	defer sb.Close()
	if err := sb.Command(ctx, "sh", "-c", "echo prepared > /state").Run(); err != nil {
		return err
	}

	copies, err := sb.Fork(ctx, 2) // all of them, or an error
	if err != nil {
		return err
	}
	for i, c := range copies {
		defer c.Close()
		if err := says(ctx, c, fmt.Sprintf("echo copy %d >> /state; xargs < /state", i), fmt.Sprintf("prepared copy %d", i)); err != nil {
			return err
		}
	}

	var options sandbox.Options
	snapshot, err := sb.Snapshot(ctx, "") // with a name made for it
	if err != nil {
		return err
	}
	defer options.RemoveSnapshot(snapshot.Name) // it would outlive this program
	saved, err := options.OpenSnapshot(ctx, snapshot.Name)
	if err != nil {
		return err
	}
	defer saved.Close()
	later, err := options.Restore(ctx, saved, saved.Config())
	if err != nil {
		return err
	}
	defer later.Close()
	return says(ctx, later, "cat /state", "prepared")
}

// says runs a line of shell in a sandbox and looks at what it says.
func says(ctx context.Context, sb *sandbox.Sandbox, line, want string) error {
	out, err := sb.Command(ctx, "sh", "-c", line).Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s", sb.ID(), out)
	if got := strings.TrimSpace(string(out)); got != want {
		return fmt.Errorf("sandbox %s says %q, want %q", sb.ID(), got, want)
	}
	return nil
}
