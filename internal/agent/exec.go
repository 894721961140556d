package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/matchlock/matchlock/api"
)

// Exec runs a command as vm.Machine.Exec says.
//
// A program that cannot be started is a result as a shell would report it, exit
// status 127 or 126 and the reason on its standard error. A CopyError comes
// together with the result.
func (c *Client) Exec(ctx context.Context, command string, opts *api.ExecOptions) (*api.ExecResult, error) {
	if opts == nil {
		opts = new(api.ExecOptions)
	}
	cmd, err := commandOf(command, opts)
	if err != nil {
		return nil, err
	}
	var stdout, stderr collector
	cmd.Stdout, cmd.Stderr = opts.Stdout, opts.Stderr
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	cmd.Stdin = opts.Stdin != nil
	exit, err := c.run(ctx, cmd, opts.Stdin, nil)
	if status := exitStatus(err); status != 0 {
		exit, err = Exit{Code: status}, notStarted(cmd.Stderr, err, "\n")
	}
	if !ended(err) {
		return nil, err
	}
	return &api.ExecResult{ExitCode: exit.Code, Stdout: stdout.buf.Bytes(), Stderr: stderr.buf.Bytes(), Duration: exit.Duration}, err
}

// ExecInteractive runs a command on a terminal as
// vm.InteractiveMachine.ExecInteractive says.
func (c *Client) ExecInteractive(ctx context.Context, command string, opts *api.ExecOptions, rows, cols uint16, stdin io.Reader, stdout io.Writer, resize <-chan [2]uint16) (int, error) {
	if opts == nil {
		opts = new(api.ExecOptions)
	}
	cmd, err := commandOf(command, opts)
	if err != nil {
		return -1, err
	}
	if stdin == nil {
		stdin = bytes.NewReader(nil)
	}
	cmd.TTY, cmd.Rows, cmd.Cols, cmd.Stdin, cmd.Stdout = true, rows, cols, true, stdout
	exit, err := c.run(ctx, cmd, stdin, resize)
	if status := exitStatus(err); status != 0 {
		return status, notStarted(stdout, err, "\r\n")
	}
	if !ended(err) {
		return -1, err
	}
	return exit.Code, err
}

// commandOf translates what the contract's methods are given.
func commandOf(command string, opts *api.ExecOptions) (Command, error) {
	cmd := Command{Args: opts.Args, Dir: opts.WorkingDir, Env: opts.Env, User: opts.User}
	if len(opts.Args) == 0 {
		cmd.Args = Shell(command)
	} else if command != "" {
		return cmd, errors.New("exec: both a command line and Args are given")
	}
	return cmd, nil
}

// ended reports whether it is known how the command ended.
func ended(err error) bool {
	var copyErr *CopyError
	return err == nil || errors.As(err, &copyErr)
}

// notStarted reports why a command was not started where its errors go.
func notStarted(stderr io.Writer, reason error, newline string) error {
	if _, err := fmt.Fprintf(stderr, "matchlock: %v%s", reason, newline); err != nil {
		return &CopyError{err}
	}
	return nil
}

// run starts a command, copies stdin to it and waits for its end. A Read of stdin
// that blocks is not waited for after that; what it then returns is lost.
func (c *Client) run(ctx context.Context, cmd Command, stdin io.Reader, resize <-chan [2]uint16) (Exit, error) {
	s, err := c.Start(ctx, cmd)
	if err != nil {
		return Exit{}, err
	}
	stdinErr := make(chan error, 1)
	if stdin != nil {
		go func() {
			stdinErr <- copyInput(s, stdin)
			s.CloseWrite() // fails only when the command is gone
		}()
	}
	if resize != nil {
		go s.follow(resize)
	}
	exit, err := s.Wait()
	if err == nil {
		select {
		case err = <-stdinErr:
		default:
		}
	}
	return exit, err
}

// copyInput returns the error of the reader; that the command takes no more is none.
func copyInput(s *Session, stdin io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &CopyError{err}
		}
	}
}

// follow passes on the sizes of a terminal.
func (s *Session) follow(sizes <-chan [2]uint16) {
	for {
		select {
		case <-s.done:
			return
		case <-s.gone:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.Resize(size[0], size[1]) // fails only when the command is gone
		}
	}
}

// A collector holds at most api.MaxCollected bytes.
type collector struct{ buf bytes.Buffer }

func (c *collector) Write(p []byte) (int, error) {
	if c.buf.Len()+len(p) > api.MaxCollected {
		return 0, fmt.Errorf("output of more than %d MiB: %w", api.MaxCollected>>20, ErrTooLarge)
	}
	return c.buf.Write(p)
}
