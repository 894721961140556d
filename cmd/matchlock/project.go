package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/project"
	"github.com/matchlock/matchlock/internal/state"
)

// underlie puts under the flags what the user's own file says, and over that what the
// project's does, which is asked for by --file or by no image.
func (a *app) underlie(f *runFlags) error {
	home, err := state.Find(os.Getenv)
	if err != nil {
		return err
	}
	own, err := project.ReadOwn(home.OwnConfig())
	if err != nil {
		return err
	}
	under, err := own.Laid()
	if err != nil {
		return err
	}
	if f.ofProject {
		file, err := readProject(f.project)
		switch {
		case err == nil:
			err = project.Store(home.Trusted()).Check(file)
		case errors.Is(err, project.ErrNone) && under.Image == "":
			return usageError{fmt.Errorf("run: IMAGE is missing, and %w", err), "run"}
		case errors.Is(err, project.ErrNone):
			file, err = &project.File{}, nil
		}
		if err != nil {
			return err
		}
		config, err := file.Laid()
		if err != nil {
			return err
		}
		lay(&under, &config)
		f.name = cmp.Or(f.name, file.Name)
	}
	f.config, err = f.laidOver(under)
	if err == nil && f.ofProject && f.config.Image == "" {
		err = fmt.Errorf("%s says no image", project.Name)
	}
	return err
}

func readProject(path string) (*project.File, error) {
	path, err := project.Find(path)
	if err != nil {
		return nil, err
	}
	return project.Read(path)
}

func (a *app) trustCommand() *cobra.Command {
	var revoke, asJSON bool
	cmd := &cobra.Command{
		Use:   "trust [FLAGS] [FILE]",
		Short: "Have all that a project's file says count",
		Long: `Have all count that matchlock.yaml in this folder or one above, or FILE, says, as it is
now: with what of it reaches beyond the project, which is printed, ` + "`matchlock run`" + ` refuses
the file otherwise. It is to be trusted again when it, or a file of rules or certificates
that it names, has changed or is elsewhere.`,
		Args:              positional("[FILE]"),
		ValidArgsFunction: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := state.Find(os.Getenv)
			if err != nil {
				return err
			}
			file, err := readProject(cmp.Or(append(args, "")...))
			if err != nil {
				return err
			}
			do := project.Store(home.Trusted()).Trust
			if revoke {
				do = project.Store(home.Trusted()).Revoke
			}
			if err := do(file); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSON(w, trustOf(file, !revoke))
			}
			if revoke {
				return nil
			}
			for _, line := range file.Reaches() {
				if _, err := fmt.Fprintln(w, printable(line)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&revoke, "revoke", false, "trust it no more")
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// trust is what `matchlock trust --json` and `matchlock init --json` print.
type trust struct {
	Path    string   `json:"path"`
	Trusted bool     `json:"trusted"`
	Reaches []string `json:"reaches"`
}

func trustOf(file *project.File, trusted bool) trust {
	return trust{file.Path(), trusted, append([]string{}, file.Reaches()...)}
}

func (a *app) initCommand() *cobra.Command {
	var ofImage string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "init [FLAGS] [FOLDER]",
		Short: "Write a project's file",
		Long: `Write matchlock.yaml into FOLDER or the present one, for ` + "`matchlock run`" + ` to start the
project's sandbox by, and trust it as it is. What image it is to be is guessed by the files
that are there. A matchlock.yaml that is there stays.`,
		Args:              positional("[FOLDER]"),
		ValidArgsFunction: folders,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("image") {
				if err := image.CheckName(ofImage); err != nil {
					return usageError{fmt.Errorf("--image: %w", err), pathOf(cmd)}
				}
			}
			folder := cmp.Or(append(args, ".")...)
			text := project.Template(folder, ofImage)
			path := filepath.Join(folder, project.Name)
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = f.WriteString(text)
			var file *project.File
			if err = errors.Join(err, f.Close()); err == nil {
				file, err = trustNew(path)
			}
			if err != nil {
				return errors.Join(err, os.Remove(path))
			}
			return printEither(cmd.OutOrStdout(), asJSON, trustOf(file, true), printable(path))
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	cmd.Flags().StringVar(&ofImage, "image", "", "`IMAGE` of the sandbox (default one that fits the files)")
	return cmd
}

func trustNew(path string) (*project.File, error) {
	home, err := state.Find(os.Getenv)
	if err != nil {
		return nil, err
	}
	file, err := project.Read(path)
	if err != nil {
		return nil, err
	}
	return file, project.Store(home.Trusted()).Trust(file)
}
