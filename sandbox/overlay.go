package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/workspace"
)

// Overlay is what a sandbox has changed in a folder of the host that it has as an
// overlay, and the host has not. The sandbox may run, or be stopped: then it must have
// been kept. Methods may be called by several goroutines at once; a sandbox or a mount
// that there is not is their error.
type Overlay struct {
	options Options
	ref     string
	target  string
}

// Overlay returns that of the mount at target in a sandbox; "" is the only one that
// there is.
func (o Options) Overlay(ref, target string) *Overlay { return &Overlay{o, ref, target} }

// ApplyOptions say what Overlay.Apply does that it refuses otherwise: with Unsafe,
// changes that are a danger, and with Force, those in conflict with what the host has
// changed since. See api.FileChange.
type ApplyOptions = workspace.ApplyOptions

// RefusedError is an error of Overlay.Apply: nothing was applied, for of its Changes, a
// []api.FileChange, each is a danger or in conflict with the host.
type RefusedError = workspace.RefusedError

// overlayCall is one of an overlay's methods, to be called where the overlay is open.
type overlayCall struct {
	Do     string `json:"do"` // changes, patch, apply or discard
	Target string `json:"target,omitempty"`
	ApplyOptions
}

type overlayAnswer struct {
	Changes []api.FileChange `json:"changes,omitempty"`
	Refused []api.FileChange `json:"refused,omitempty"` // of apply; then nothing was done
	Failed  string           `json:"failed,omitempty"`  // why that is not all
}

// Changes lists what differs, by path. What is a danger to put on the host says so.
func (v *Overlay) Changes(ctx context.Context) ([]api.FileChange, error) {
	answer, err := v.call(ctx, overlayCall{Do: "changes", Target: v.target})
	return answer.Changes, err
}

// Apply puts the changes on the host, each file as a whole, and so out of the overlay. If
// one of them is refused, nothing is done, and the error is a *RefusedError. It returns
// what was done, after an error too.
func (v *Overlay) Apply(ctx context.Context, o ApplyOptions) ([]api.FileChange, error) {
	answer, err := v.call(ctx, overlayCall{Do: "apply", Target: v.target, ApplyOptions: o})
	switch {
	case err == nil && len(answer.Refused) > 0:
		err = &RefusedError{Changes: answer.Refused}
	case err == nil && answer.Failed != "":
		err = errors.New(answer.Failed)
	}
	return answer.Changes, err
}

// Discard forgets the changes: the sandbox has the host's files again.
func (v *Overlay) Discard(ctx context.Context) error {
	_, err := v.call(ctx, overlayCall{Do: "discard", Target: v.target})
	return err
}

// call has something done, of which JSON comes back.
func (v *Overlay) call(ctx context.Context, c overlayCall) (answer overlayAnswer, err error) {
	var text bytes.Buffer
	if err := v.do(ctx, c, &text); err != nil {
		return answer, err
	}
	return answer, json.Unmarshal(text.Bytes(), &answer)
}

// Patch writes the changes as git would, for reading and for `git apply`. Of a binary
// file it says that it differs.
func (v *Overlay) Patch(ctx context.Context, w io.Writer) error {
	return v.do(ctx, overlayCall{Do: "patch", Target: v.target}, w)
}

// do has something done: by the sandbox's supervisor, if it runs, or here.
func (v *Overlay) do(ctx context.Context, c overlayCall, w io.Writer) (err error) {
	home, e, err := v.options.locate(v.ref)
	if err != nil {
		return err
	}
	if e.Status.Alive() {
		r := newRemote(v.options, home, e)
		files, err := r.control.Files(ctx, methodOverlay, c, nil)
		if err != nil {
			return r.explain(ctx, err)
		}
		defer files[0].Close()
		_, err = io.Copy(w, io.NewSectionReader(files[0], 0, math.MaxInt64))
		return err
	}
	dir, err := openStopped(ctx, home, v.ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	s := &supervisor{dir: dir}
	if err := hostfs.ReadRecord(dir.Path(configName), &s.config); err != nil {
		return fmt.Errorf("sandbox %q: its configuration: %w", v.ref, err)
	}
	var trees []tree
	for i, m := range withoutVolumes(s.config.Mounts) {
		t := tree{savedPlace: savedPlace{Target: path.Clean(m.Target), Mode: m.Mode}, source: m.Source}
		if m.Mode == api.MountOverlay && (v.target == "" || t.Target == path.Clean(v.target)) {
			offered, err := s.openTree(&t, i, nil)
			if err != nil {
				return fmt.Errorf("mount at %s: %w", t.Target, err)
			}
			defer offered.Close()
		}
		trees = append(trees, t)
	}
	return doOverlay(ctx, trees, c, w)
}

// overlayAt finds the overlay that is meant.
func overlayAt(trees []tree, target string) (tree, error) {
	var overlays []tree
	for _, t := range trees {
		if t.Mode == api.MountOverlay && t.overlay != nil {
			overlays = append(overlays, t)
		}
	}
	if target == "" && len(overlays) == 1 {
		return overlays[0], nil
	}
	if i := slices.IndexFunc(overlays, func(t tree) bool { return target != "" && t.Target == path.Clean(target) }); i >= 0 {
		return overlays[i], nil
	}
	switch {
	case len(overlays) == 0:
		return tree{}, &hintError{errors.New("the sandbox has no overlay"), "`matchlock run --workspace DIR`, or -v DIR:PATH:overlay, makes one"}
	case target == "":
		var all []string
		for _, t := range overlays {
			all = append(all, t.Target)
		}
		return tree{}, &hintError{fmt.Errorf("the sandbox has %d overlays", len(overlays)), "say which by --mount: " + strings.Join(all, ", ")}
	}
	return tree{}, fmt.Errorf("mount %s: the sandbox has no overlay there", strconv.Quote(target))
}

// doOverlay does what a call says, and writes the answer.
func doOverlay(ctx context.Context, trees []tree, c overlayCall, w io.Writer) error {
	t, err := overlayAt(trees, c.Target)
	if err != nil {
		return err
	}
	var answer overlayAnswer
	switch c.Do {
	case "patch":
		return t.overlay.Patch(ctx, w)
	case "changes":
		answer.Changes, err = t.overlay.Changes(ctx)
	case "apply":
		answer.Changes, err = t.overlay.Apply(ctx, t.source, c.ApplyOptions)
		if refused, ok := errors.AsType[*RefusedError](err); ok {
			answer.Refused, err = refused.Changes, nil
		}
	case "discard":
		err = t.overlay.Discard()
	default:
		err = fmt.Errorf("overlay: %q is nothing that can be done with one", c.Do)
	}
	if err != nil && len(answer.Changes) > 0 {
		answer.Failed, err = err.Error(), nil // what was done is not lost
	}
	return errors.Join(err, json.NewEncoder(w).Encode(answer))
}

// hosted are the trees that the guest has.
func (s *supervisor) hosted() []tree {
	if s.files == nil {
		return nil
	}
	return s.files.trees
}

// serveOverlay answers by a file: what there is to say has no bounds.
func (s *supervisor) serveOverlay(ctx context.Context, c *control.Call) (any, error) {
	var p overlayCall
	if err := c.Params(&p); err != nil {
		return nil, err
	}
	file, err := s.dir.Temporary()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if s.files != nil && (p.Do == "apply" || p.Do == "discard") {
		s.files.applying.Lock()
		defer s.files.applying.Unlock()
	}
	if err := doOverlay(ctx, s.hosted(), p, file); err != nil {
		return nil, err
	}
	return nil, c.SendFiles(struct{}{}, []*os.File{file})
}
