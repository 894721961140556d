package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/sandbox"
)

// Exit statuses that are ours. The rest is the command's.
const (
	statusNo      = 1
	statusTimeout = 124
	statusFault   = 125
)

// exitStatus ends the program with a status and no further word.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// usageError is a command line that makes no sense.
type usageError struct {
	error
	command string // its name; empty: the program's
}

func (e usageError) Unwrap() error { return e.error }

// Hint is where the right form is to be read.
func (e usageError) Hint() string {
	return "`" + strings.TrimSpace("matchlock "+e.command) + " --help` shows what there is"
}

// pathOf is a command's name without the program's.
func pathOf(cmd *cobra.Command) string {
	_, path, _ := strings.Cut(cmd.CommandPath(), " ")
	return path
}

// flagError puts pflag's errors in our words.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		cause := invalid.Unwrap()
		if number, ok := errors.AsType[*strconv.NumError](cause); ok {
			cause = number.Err // without the name of strconv's function
		}
		name, value := invalid.GetFlag().Name, strconv.Quote(invalid.GetValue())
		secret := strings.HasPrefix(name, "secret") // its text may be one
		if text := cause.Error(); secret || strings.HasPrefix(text, name+" ") || strings.Contains(text, value) {
			err = fmt.Errorf("--%s: %w", name, cause)
		} else {
			err = fmt.Errorf("--%s %s: %w", name, value, cause)
		}
	}
	return usageError{err, pathOf(cmd)}
}

// positional checks the number of arguments. names says what they are: one word
// each, in brackets what may be missing, with an ellipsis what may be repeated.
func positional(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		repeats := false
		for i, name := range names {
			if i >= len(args) && !strings.HasPrefix(name, "[") {
				return usageError{fmt.Errorf("%s: %s is missing", pathOf(cmd), strings.TrimSuffix(name, "…")), pathOf(cmd)}
			}
			repeats = repeats || strings.Contains(name, "…")
		}
		if len(args) > len(names) && !repeats {
			return usageError{fmt.Errorf("%s: unexpected argument %q", pathOf(cmd), args[len(names)]), pathOf(cmd)}
		}
		return nil
	}
}

// onlyOne has a command refuse two flags together.
func onlyOne(cmd *cobra.Command, a, b string) {
	cmd.MarkFlagsMutuallyExclusive(a, b) // for completion; of its own error we say more
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed(a) && cmd.Flags().Changed(b) {
			return usageError{fmt.Errorf("--%s and --%s: only one may be given", a, b), pathOf(cmd)}
		}
		return nil
	}
}

// printError prints a line for each fault, and the ways out that are known.
func printError(w io.Writer, err error) {
	for _, fault := range faults(err) {
		fmt.Fprintf(w, "matchlock: error: %s\n", strings.ReplaceAll(printableLines(fault.Error()), "\n", "\nmatchlock: error: "))
		if hint := hintOf(fault); hint != "" {
			fmt.Fprintf(w, "matchlock: hint: %s\n", hint)
		}
	}
}

// faults takes apart what errors.Join joined, which says no more than its parts.
func faults(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	var texts []string
	for _, e := range joined.Unwrap() {
		all = append(all, faults(e)...)
		texts = append(texts, e.Error())
	}
	if strings.Join(texts, "\n") != err.Error() {
		return []error{err}
	}
	return all
}

// hintOf returns what the user can do about an error, "" when we do not know.
func hintOf(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	if missing, ok := errors.AsType[*image.NotFoundError](err); ok && missing.Err == nil {
		hint := "`matchlock image ls` lists the local ones"
		if len(missing.Near) > 0 {
			hint += fmt.Sprintf("; did you mean %q?", missing.Near[0])
		}
		return hint
	}
	if _, refused := errors.AsType[*sandbox.RefusedError](err); refused {
		return "`matchlock workspace diff` shows them; --unsafe takes what is a danger, --force what is in conflict"
	}
	switch {
	case errors.Is(err, image.ErrDenied):
		return "`docker login` stores credentials, which matchlock reads from docker's configuration"
	case errors.Is(err, image.ErrInUse):
		return "`matchlock ps -a` lists the sandboxes, `matchlock rm` removes one"
	case errors.Is(err, image.ErrTooLarge):
		return "--max-size allows more"
	case errors.Is(err, syscall.ENOSPC):
		return "`matchlock image prune` and `matchlock cache prune` remove what nothing needs; MATCHLOCK_HOME names another place for all of it"
	}
	return ""
}
