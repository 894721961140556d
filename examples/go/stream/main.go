// Command stream reads what a command of a sandbox says line by line while it runs, and
// tells how it ended.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
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
	sb, err := sandbox.New(ctx, api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")})
	if err != nil {
		return err
	}
	defer sb.Close()

	// Nothing is kept in memory: who reads slowly has the command wait.
	output, w := io.Pipe()
	defer output.Close()
	build := sb.Command(ctx, "sh", "-c", "for i in 1 2 3; do echo step $i; sleep 0.1; done; echo no more >&2; exit 3")
	build.Stdout, build.Stderr = w, os.Stderr
	if err := build.Start(); err != nil {
		return err
	}
	go func() { w.CloseWithError(build.Wait()) }() // the reader has its error, or EOF

	lines := bufio.NewScanner(output)
	n := 0
	for lines.Scan() {
		n++
		fmt.Printf("%d: %s\n", n, lines.Text())
	}
	exit, ok := errors.AsType[*sandbox.ExitError](lines.Err())
	if !ok || exit.Code != 3 || n != 3 {
		return fmt.Errorf("%d lines, then %v; want 3, then exit status 3", n, lines.Err())
	}
	return nil
}
