// Command terminal gives you a shell in a sandbox, on your terminal, and ends as the shell
// does. What is not a terminal is typed as it comes.
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	err := run(context.Background())
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok && exit.Err == nil {
		os.Exit(exit.Code)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sb, err := sandbox.New(ctx, api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")})
	if err != nil {
		return err
	}
	defer sb.Close()

	shell := sb.Command(ctx, "sh")
	shell.Tty, shell.Stdin, shell.Stdout = true, os.Stdin, os.Stdout
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return shell.Run()
	}
	// Keys go to the shell as they are, ^C too; its terminal does the echo.
	mode, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	defer term.Restore(fd, mode)
	if err := shell.Start(); err != nil {
		return err
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	resized <- syscall.SIGWINCH // for the size that it has now
	go func() {
		for range resized {
			if cols, rows, err := term.GetSize(fd); err == nil {
				shell.Resize(uint16(rows), uint16(cols)) // one that has ended needs none
			}
		}
	}()
	err = shell.Wait()
	signal.Stop(resized)
	close(resized)
	return err
}
