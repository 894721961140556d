package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// filter says which sandboxes a command is about: those that each of its conditions fits.
type filter []func(api.Info) bool

// filterKeys are the keys, with what fits a value.
var filterKeys = map[string]func(i api.Info, value string) bool{
	"label": func(i api.Info, value string) bool {
		name, want, hasValue := strings.Cut(value, "=")
		got, ok := i.Labels[name]
		return ok && (!hasValue || got == want)
	},
	"name":   func(i api.Info, value string) bool { return strings.Contains(i.Name, value) },
	"id":     func(i api.Info, value string) bool { return strings.HasPrefix(i.ID, value) },
	"image":  func(i api.Info, value string) bool { return i.Image == value || shortImage(i.Image) == value },
	"status": func(i api.Info, value string) bool { return string(i.Status) == value },
}

// define adds the flag, which takes some of the keys: all of them if none are given.
func (f *filter) define(flags *pflag.FlagSet, keys ...string) {
	if len(keys) == 0 {
		keys = []string{"label", "name", "image", "status", "id"}
	}
	usage := "only those that `KEY=VALUE` fits: " + strings.Replace(strings.Join(keys, ", "), "label", "label=NAME[=VALUE]", 1) + "; each of several must"
	parsed(flags, "filter", "", usage, f, func(text string) (filter, error) {
		key, value, ok := strings.Cut(text, "=")
		fits := filterKeys[key]
		switch {
		case !ok || value == "":
			return nil, errors.New("want KEY=VALUE")
		case !slices.Contains(keys, key):
			return nil, fmt.Errorf("key %q: want %s", key, oneOf(keys))
		case key == "status" && !slices.Contains(statuses, api.Status(value)):
			return nil, fmt.Errorf("status %q: want %s", value, oneOf(statuses))
		}
		return append(*f, func(i api.Info) bool { return fits(i, value) }), nil
	})
	_ = flags.SetAnnotation("filter", keysOfFilter, keys) // fails only where there is no such flag
}

// keysOfFilter is the annotation by which completion knows what a command's filter takes.
const keysOfFilter = "keys"

var statuses = []api.Status{api.StatusStarting, api.StatusRunning, api.StatusPaused, api.StatusStopping, api.StatusRestarting, api.StatusStopped, api.StatusDead}

func (f filter) fits(i api.Info) bool {
	return !slices.ContainsFunc(f, func(condition func(api.Info) bool) bool { return !condition(i) })
}

// orNamed is the check of the arguments of a command that a filter, or else names, tell
// which sandboxes it is about.
func (f *filter) orNamed(cmd *cobra.Command, args []string) error {
	switch {
	case len(*f) == 0:
		return positional("SANDBOX…")(cmd, args)
	case len(args) > 0:
		return usageError{fmt.Errorf("%s: SANDBOX and --filter: only one may be given", pathOf(cmd)), pathOf(cmd)}
	}
	return nil
}

// choose returns the sandboxes that are meant: those that are named, or of those that fit
// which the ones that the filter fits. That there is none is no error.
func (f filter) choose(ctx context.Context, o sandbox.Options, named []string, which func(api.Info) bool) ([]string, error) {
	if len(f) == 0 {
		return named, nil
	}
	list, err := o.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		if which(i) && f.fits(i) {
			names = append(names, cmp.Or(i.Name, i.ID))
		}
	}
	return names, nil
}
