package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) cpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and folders into a sandbox or out of it",
		Long: `Copy a file or a folder between the host and a sandbox that runs. One of SRC and DST is
SANDBOX:PATH, with an absolute PATH; the other a path of the host, or - for a tar archive
on standard input or output. The image needs no tar.

As with docker: a DST that is a folder gets SRC in it, one that does not exist becomes the
copy, and SRC/. is what is in a folder. In the sandbox the copy is root's; on the host it
is yours, without set-id bits, and what is neither file, folder nor link is left out.`,
		Example: `  matchlock cp src web:/app
  matchlock cp web:/var/log/app.log .
  matchlock cp web:/etc - | tar t`,
		Args:              positional("SRC", "DST"),
		ValidArgsFunction: a.completeCopy,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			fromRef, from, fromGuest := cutGuestPath(args[0])
			toRef, to, toGuest := cutGuestPath(args[1])
			if fromGuest == toGuest {
				return usageError{errors.New("cp: one of SRC and DST is SANDBOX:PATH, the other is not"), pathOf(cmd)}
			}
			ref, path := fromRef, from
			if toGuest {
				ref, path = toRef, to
			}
			if !strings.HasPrefix(path, "/") {
				return usageError{fmt.Errorf("cp: path %q in the sandbox: not an absolute path", path), pathOf(cmd)}
			}
			sb, err := a.options().Attach(cmd.Context(), ref)
			if err != nil {
				return err
			}
			defer sb.Close()
			ctx := cmd.Context()
			files := sb.FS(ctx)
			defer func() {
				// Which side a path is of must be told, as far as it can be.
				if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == path && from != to {
					e.Path = ref + ":" + path
				}
			}()
			switch {
			case fromGuest && to == "-":
				if isTerminal(os.Stdout) {
					return usageError{errors.New("cp: standard output is a terminal; redirect the archive"), pathOf(cmd)}
				}
				return files.TarOut(ctx, from, os.Stdout)
			case fromGuest:
				return files.CopyOut(ctx, from, to)
			case from == "-":
				if isTerminal(os.Stdin) {
					return usageError{errors.New("cp: standard input is a terminal; redirect an archive"), pathOf(cmd)}
				}
				return files.TarIn(ctx, os.Stdin, to)
			}
			return files.CopyIn(ctx, from, to)
		},
	}
	return cmd
}

// cutGuestPath takes SANDBOX:PATH apart. What has a slash or a dot before its
// first colon is a path of the host, as docker reads it.
func cutGuestPath(arg string) (ref, path string, ok bool) {
	ref, path, ok = strings.Cut(arg, ":")
	if !ok || ref == "" || strings.ContainsAny(ref, "/\\") || strings.HasPrefix(ref, ".") {
		return "", arg, false
	}
	return ref, path, true
}

// completeCopy completes the sandboxes that run, up to the colon; paths of the
// host are the shell's.
func (a *app) completeCopy(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) >= 2 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := a.completeSandboxes(-1, isAlive)(cmd, nil, typed)
	for i, name := range names {
		name, _, _ = strings.Cut(name, "\t")
		names[i] = name + ":"
	}
	return names, cobra.ShellCompDirectiveDefault | cobra.ShellCompDirectiveNoSpace
}
