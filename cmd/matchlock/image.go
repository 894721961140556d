package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image COMMAND",
		Short: "Work with the images of the local store",
		Args:  cobra.ArbitraryArgs,
		RunE:  showHelp,
	}
	list, remove := a.imageListCommand("ls"), a.imageRemoveCommand("rm")
	list.Aliases, remove.Aliases = []string{"list"}, []string{"remove"}
	cmd.AddCommand(list, remove, a.imageInspectCommand(), a.imageImportCommand(),
		a.imageSaveCommand(), a.imageTagCommand(), a.imagePruneCommand(), a.pullCommand())
	return cmd
}

// aliases are docker's short forms.
func (a *app) aliases() []*cobra.Command {
	images, rmi := a.imageListCommand("images"), a.imageRemoveCommand("rmi [FLAGS]")
	for _, cmd := range []*cobra.Command{images, rmi} {
		cmd.Hidden = true
	}
	return []*cobra.Command{images, rmi}
}

// onStore is what a command does with the image store.
func (a *app) onStore(run func(cmd *cobra.Command, store *image.Store, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		store, err := a.store()
		if err != nil {
			return err
		}
		return run(cmd, store, args)
	}
}

// intakeFlags bound what is taken into the store.
type intakeFlags struct {
	platform string
	maxSize  int64
	json     bool
}

func (f *intakeFlags) define(fs *pflag.FlagSet) {
	fs.StringVar(&f.platform, "platform", "", "`PLATFORM` of the image, os/arch (default the host's)")
	parsed(fs, "max-size", "", "`SIZE` that the image may unpack to (default 64g)", &f.maxSize, sizeIn(api.GiB))
	jsonFlag(fs, &f.json)
}

func jsonFlag(fs *pflag.FlagSet, target *bool) {
	fs.BoolVar(target, "json", false, "print the result as JSON")
}

func (a *app) pullCommand() *cobra.Command {
	var f intakeFlags
	cmd := &cobra.Command{
		Use:   "pull [FLAGS] IMAGE",
		Short: "Fetch an image from its registry",
		Long: `Fetch an image from its registry into the local store. Credentials come from docker's
configuration and its helpers, a proxy from HTTPS_PROXY. Layers that are there are not
fetched again; a name with a digest gets exactly that image.`,
		Args:              positional("IMAGE"),
		ValidArgsFunction: a.completeImages(1),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			return a.take(cmd, &f, func(ctx context.Context, progress image.Progress) (*image.Image, error) {
				return store.Pull(ctx, args[0], image.PullOptions{Platform: f.platform, MaxBytes: f.maxSize, Progress: progress})
			})
		}),
	}
	f.define(cmd.Flags())
	return cmd
}

// take brings an image into the store, under bars, and prints what it is.
func (a *app) take(cmd *cobra.Command, f *intakeFlags, from func(context.Context, image.Progress) (*image.Image, error)) error {
	bars := a.newBars()
	defer bars.close()
	img, err := untilDone(cmd.Context(), func(ctx context.Context) (*image.Image, error) { return from(ctx, bars.layer) })
	if err != nil {
		return err
	}
	bars.close()
	if f.json {
		err = printJSON(cmd.OutOrStdout(), details(img))
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", img.Name, img.Digest)
	}
	return errors.Join(err, img.Release())
}

func (a *app) imageImportCommand() *cobra.Command {
	var f intakeFlags
	var changes []string
	cmd := &cobra.Command{
		Use:   "import [FLAGS] NAME [FILE]",
		Short: "Make an image of an archive",
		Long: `Make an image of an archive: what docker save wrote, an OCI image layout (a folder or a
tar of one), or the tar of a root file system; plain or packed with gzip, zstd, xz or
bzip2. Which it is, is told by its content. Without FILE, or with -, the archive is
read from standard input.

A root file system runs /bin/sh unless --change says otherwise.`,
		Example: `  docker save debian:12 | matchlock image import debian:12
  matchlock image import --change 'CMD ["python3"]' tools rootfs.tar.zst`,
		Args:              positional("NAME", "[FILE]"),
		ValidArgsFunction: thenFiles(a.completeImages(1)),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			return a.take(cmd, &f, func(ctx context.Context, progress image.Progress) (*image.Image, error) {
				options := image.ImportOptions{Changes: changes, Platform: f.platform, MaxBytes: f.maxSize, Progress: progress}
				if len(args) == 2 && args[1] != "-" {
					return store.ImportPath(ctx, args[0], args[1], options)
				}
				if isTerminal(os.Stdin) {
					return nil, usageError{errors.New("import: standard input is a terminal; give a FILE or redirect an archive"), pathOf(cmd)}
				}
				return store.Import(ctx, args[0], os.Stdin, options)
			})
		}),
	}
	f.define(cmd.Flags())
	changeFlag(cmd.Flags(), &changes)
	return cmd
}

func changeFlag(fs *pflag.FlagSet, target *[]string) {
	fs.StringArrayVarP(target, "change", "c", nil, "change the image's configuration by a `LINE` of a Dockerfile: CMD, ENTRYPOINT, ENV, USER, WORKDIR")
}

// patience is how long what a signal has ended may take to clean up.
const patience = 2 * time.Second

// untilDone runs work, and does not wait for it for ever once ctx has ended: it
// may hang in a read of standard input. What it leaves then, the store sweeps.
func untilDone[T any](ctx context.Context, work func(context.Context) (T, error)) (T, error) {
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		result, err := work(ctx)
		done <- outcome{result, err}
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done:
		return o.result, o.err
	case <-time.After(patience):
		var none T
		return none, context.Cause(ctx)
	}
}

func (a *app) imageListCommand(name string) *cobra.Command {
	var asJSON, quiet bool
	var only filter
	cmd := &cobra.Command{
		Use:   name + " [FLAGS]",
		Short: "List the images of the local store",
		Args:  positional(),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			images, err := store.List()
			if err != nil {
				return err
			}
			images = slices.DeleteFunc(images, func(i image.Summary) bool { return !only.fits(api.Info{ID: i.Digest, Name: i.Name}) })
			w := cmd.OutOrStdout()
			if !asJSON && !quiet {
				return printImages(w, images, time.Now())
			}
			for _, img := range images {
				if err := printEither(w, asJSON, img, img.Digest); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	only.define(cmd.Flags(), "name", "id")
	jsonFlag(cmd.Flags(), &asJSON)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print digests only")
	onlyOne(cmd, "json", "quiet")
	return cmd
}

func printImages(w io.Writer, images []image.Summary, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tDIGEST\tPLATFORM\tSIZE\tSTORED")
	for _, img := range images {
		stored := "-"
		if !img.Stored.IsZero() {
			stored = ago(now.Sub(img.Stored))
		}
		if img.Problem != "" {
			stored = "unusable: " + printable(img.Problem)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", printable(img.Name), image.ShortDigest(img.Digest), cmp.Or(printable(img.Platform), "-"), api.FormatSize(img.Size), stored)
	}
	return table.Flush()
}

// ago is a time passed as people say it.
func ago(d time.Duration) string {
	if d < time.Minute {
		return "just now"
	}
	return age(d) + " ago"
}

// age is a duration as people say it, in its largest unit.
func age(d time.Duration) string {
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}} {
		switch n := int(d / unit.size); {
		case n == 1:
			return "1 " + unit.name
		case n > 1:
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}
	return fmt.Sprintf("%d s", max(0, int(d/time.Second)))
}

// imageDetails is what `image inspect` tells.
type imageDetails struct {
	Name         string         `json:"name,omitempty"`
	Digest       string         `json:"digest"`
	PulledDigest string         `json:"pulled_digest,omitempty"`
	Size         int64          `json:"size"`
	Stored       time.Time      `json:"stored,omitzero"`
	Config       image.Config   `json:"config"`
	Layers       []layerDetails `json:"layers"`
}

type layerDetails struct {
	DiffID string `json:"diff_id"`
	Path   string `json:"path"`
	FSType string `json:"fs_type"`
}

func details(img *image.Image) imageDetails {
	d := imageDetails{
		Name: img.Name, Digest: img.Digest, PulledDigest: img.PulledDigest, Size: img.Size, Stored: img.Stored, Config: img.Config,
	}
	for _, l := range img.Layers {
		d.Layers = append(d.Layers, layerDetails{l.DiffID, l.Path, l.FSType})
	}
	return d
}

func (a *app) imageInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "inspect [FLAGS] IMAGE…",
		Short:             "Show what the store knows of images",
		Long:              "Show what the store knows of images, as JSON; with --json one line each.",
		Args:              positional("IMAGE…"),
		ValidArgsFunction: a.completeImages(-1),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			show := printIndented
			if asJSON {
				show = printJSON
			}
			for _, ref := range args {
				if err := inspectImage(cmd, store, ref, show); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one object a line")
	return cmd
}

// inspectImage shows what the store knows of an image.
func inspectImage(cmd *cobra.Command, store *image.Store, ref string, show func(io.Writer, any) error) error {
	img, err := store.Lookup(ref)
	if err != nil {
		return err
	}
	defer img.Release()
	lineage, err := store.Lineage(img)
	if err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), struct {
		imageDetails
		image.Lineage
	}{details(img), lineage})
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// printJSONLines prints a line for each.
func printJSONLines[T any](w io.Writer, all []T) error {
	for _, v := range all {
		if err := printJSON(w, v); err != nil {
			return err
		}
	}
	return nil
}

// printEither prints a line: v as JSON, or text.
func printEither(w io.Writer, asJSON bool, v any, text string) error {
	if asJSON {
		return printJSON(w, v)
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func printIndented(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func (a *app) imageRemoveCommand(use string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   strings.TrimSuffix(use, " [FLAGS]") + " [FLAGS] IMAGE…",
		Short: "Remove images from the local store",
		Long: `Take their names from images; given a digest, all its names. What no other image needs is
deleted with the last name. An image that a sandbox has, running or not, stays.`,
		Args:              positional("IMAGE…"),
		ValidArgsFunction: a.completeImages(-1),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			needs, err := a.imageNeeds(cmd.Context())
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				removed, err := store.Remove(ref, needs)
				if err == nil {
					err = printRemoved(cmd.OutOrStdout(), removed, asJSON)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}),
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// printRemoved prints the names that are gone, or all there is to say as JSON.
func printRemoved(w io.Writer, removed image.Removed, asJSON bool) error {
	if asJSON {
		return printJSON(w, removed)
	}
	for _, name := range removed.Names {
		if _, err := fmt.Fprintln(w, printable(name)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) imageTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "tag IMAGE NAME",
		Short:             "Give an image a further name",
		Args:              positional("IMAGE", "NAME"),
		ValidArgsFunction: a.completeImages(1),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			return store.Tag(args[0], args[1])
		}),
	}
}

func (a *app) imageSaveCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "save [FLAGS] IMAGE…",
		Short: "Write images to an archive",
		Long: `Write images to one tar, an OCI image layout that docker load reads too, on standard
output or in a file.`,
		Args:              positional("IMAGE…"),
		ValidArgsFunction: a.completeImages(-1),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			return writeArchive(cmd, "save", output, func(w io.Writer) error { return store.Save(cmd.Context(), args, w) })
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to `FILE`")
	return cmd
}

// writeArchive has write write where --output says: to a file, or to standard
// output, which must not be a terminal then. verb is what the error calls it.
func writeArchive(cmd *cobra.Command, verb, output string, write func(io.Writer) error) error {
	if output != "" && output != "-" {
		return writeWhole(output, write)
	}
	if isTerminal(cmd.OutOrStdout()) {
		return usageError{errors.New(verb + ": standard output is a terminal; redirect it or use --output"), pathOf(cmd)}
	}
	return write(cmd.OutOrStdout())
}

// writeWhole writes a file that has its name only when it is complete.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".matchlock-*")
	if e, ok := errors.AsType[*fs.PathError](err); ok { // of a file that nobody asked for
		return fmt.Errorf("--output %q: %w", path, e.Err)
	}
	if err != nil {
		return err
	}
	err = write(f)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "prune [FLAGS]",
		Short: "Remove what no image needs",
		Long: `Remove what no image with a name and no sandbox needs, and what was left half done; with
--all the images that no sandbox uses as well.`,
		Args: positional(),
		RunE: a.onStore(func(cmd *cobra.Command, store *image.Store, args []string) error {
			needs, err := a.imageNeeds(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := store.Prune(cmd.Context(), image.PruneOptions{All: all, Needs: needs})
			if err != nil {
				return err
			}
			if err := printRemoved(cmd.OutOrStdout(), removed, asJSON); err != nil || asJSON {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "freed %s in %d files\n", api.FormatSize(removed.Bytes), removed.Files)
			return err
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "images with a name too, unless a sandbox uses them")
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
