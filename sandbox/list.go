package sandbox

import (
	"context"
	"errors"
	"fmt"

	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
)

// List is Options.List with the zero Options.
func List(ctx context.Context) ([]api.Info, error) { return Options{}.List(ctx) }

// List returns the sandboxes that exist, running or not, the oldest first. One
// whose record cannot be read has an Error that says so.
func (o Options) List(context.Context) ([]api.Info, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	entries, err := state.List(home.Sandboxes())
	if err != nil {
		return nil, err
	}
	list := make([]api.Info, 0, len(entries))
	for _, e := range entries {
		list = append(list, infoOf(e))
	}
	return list, nil
}

// Find returns what is known of a sandbox, running or not: ref is its name, its
// id, or the beginning of its id.
func (o Options) Find(_ context.Context, ref string) (api.Info, error) {
	_, e, err := o.locate(ref)
	return infoOf(e), err
}

func infoOf(e state.Entry) api.Info {
	info := e.Info
	if e.Problem != nil {
		info.Error = e.Problem.Error()
	}
	return info
}

// locate finds a sandbox below the home folder, which it returns too.
func (o Options) locate(ref string) (home state.Home, e state.Entry, err error) {
	if home, err = o.home(); err != nil {
		return home, e, err
	}
	e, err = lookup(home, ref)
	return home, e, err
}

// lookup finds a sandbox; one that there is not is ErrNotFound.
func lookup(home state.Home, ref string) (state.Entry, error) {
	e, err := state.Lookup(home.Sandboxes(), ref)
	if missing, ok := errors.AsType[*state.NotFoundError](err); ok {
		return e, &missingError{missing}
	}
	return e, err
}

// missingError is ErrNotFound for a sandbox.
type missingError struct{ *state.NotFoundError }

func (missingError) Is(target error) bool { return target == ErrNotFound }

// settled finds a sandbox, and of one that is at its end awaits that: it has been
// asked to end, or its first command has ended a moment ago.
func settled(ctx context.Context, home state.Home, ref string) (state.Entry, error) {
	e, err := lookup(home, ref)
	if err != nil || !e.Ending() {
		return e, err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	_ = state.AwaitEnd(ctx, e) // the look that follows tells
	return lookup(home, ref)
}

// openStopped takes over the folder of a sandbox that has ended.
func openStopped(ctx context.Context, home state.Home, ref string) (*state.Dir, error) {
	e, err := settled(ctx, home, ref)
	if err != nil {
		return nil, err
	}
	dir, err := state.Open(ctx, e)
	if errors.Is(err, state.ErrAlive) {
		return nil, stillRunning(e.Name)
	}
	if err != nil {
		return nil, err
	}
	if e.Problem != nil {
		return nil, errors.Join(fmt.Errorf("sandbox %q: %w", e.ID, e.Problem), dir.Close())
	}
	return dir, nil
}

// Inspection is all that there is to know of a sandbox. Nothing in it is secret:
// of environment variables it has but the names.
type Inspection struct {
	api.Info
	Folder string     `json:"folder"`          // of its files on the host
	Config api.Config `json:"config,omitzero"` // without the values of Env
	// MachinePID is the hypervisor's process, 0 when none runs.
	MachinePID int `json:"machine_pid,omitempty"`
	// Accel is what runs the guest, "kvm" or "tcg", and AccelReason why. TCG is no
	// boundary of security.
	Accel       string `json:"accel,omitempty"`
	AccelReason string `json:"accel_reason,omitempty"`
	// Jail is what keeps the hypervisor's process from the host, JailMissing what could
	// not be had here, each with the reason.
	Jail        []string `json:"jail,omitempty"`
	JailMissing []string `json:"jail_missing,omitempty"`
}

// Redacted takes the place of what an Inspection does not show.
const Redacted = "[redacted]"

// Inspect returns all that there is to know of a sandbox, running or not.
func (o Options) Inspect(ctx context.Context, ref string) (Inspection, error) {
	home, e, err := o.locate(ref)
	if err != nil {
		return Inspection{}, err
	}
	i := Inspection{Info: infoOf(e), Folder: e.Path}
	if err := hostfs.ReadRecord(filepath.Join(e.Path, configName), &i.Config); err != nil && !errors.Is(err, os.ErrNotExist) {
		return i, fmt.Errorf("sandbox %q: its configuration: %w", e.Name, err)
	}
	for name := range i.Config.Env {
		i.Config.Env[name] = Redacted
	}
	if proxy, err := url.Parse(i.Config.Network.UpstreamProxy); err == nil {
		i.Config.Network.UpstreamProxy = proxy.Redacted()
	}
	if e.Status.Alive() {
		var d description
		// It may end meanwhile; what its files say is known even so.
		if err := newRemote(o, home, e).call(ctx, methodDescribe, nil, &d); err == nil {
			i.MachinePID, i.Accel, i.AccelReason = d.MachinePID, d.Accel, d.AccelReason
			i.Jail, i.JailMissing = d.Jail, d.JailMissing
		}
	}
	return i, nil
}

// Rename gives a sandbox, running or not, another name.
func (o Options) Rename(ctx context.Context, ref, name string) error {
	if err := state.CheckName(name); err != nil {
		return err
	}
	home, e, err := o.locate(ref)
	if err != nil {
		return err
	}
	if e.Status.Alive() {
		return newRemote(o, home, e).rename(ctx, name)
	}
	dir, err := openStopped(ctx, home, e.ID)
	if err != nil {
		return err
	}
	if err = dir.Rename(ctx, name); err == nil {
		o.tell(home, dir.Record().Info, api.LifeRenamed, "from "+e.Name)
	}
	return errors.Join(err, dir.Close())
}

// Remove removes a sandbox and all that it has written. One that runs is
// ErrRunning, unless force has it end at once; its supervisor is killed should it
// not answer.
func (o Options) Remove(ctx context.Context, ref string, force bool) error {
	home, err := o.home()
	if err != nil {
		return err
	}
	var e state.Entry
	if force {
		e, err = lookup(home, ref)
	} else {
		e, err = settled(ctx, home, ref)
	}
	if err != nil {
		return err
	}
	if e.Status.Alive() {
		if !force {
			return &hintError{stillRunning(e.Name), "`matchlock stop` ends it first, `matchlock rm --force` at once"}
		}
		if err := newRemote(o, home, e).kill(ctx, true); err != nil {
			return fmt.Errorf("sandbox %q: %w", e.Name, err)
		}
		if e, err = state.Lookup(home.Sandboxes(), e.ID); err != nil {
			return nil // gone with its supervisor
		}
	}
	if e.Problem != nil && !force {
		return &hintError{fmt.Errorf("sandbox %q: %w", e.ID, e.Problem), "`matchlock rm --force` removes it, whatever is in it"}
	}
	dir, err := state.Open(ctx, e)
	if errors.Is(err, state.ErrAlive) {
		return stillRunning(e.Name) // again
	}
	if _, gone := errors.AsType[*state.NotFoundError](err); gone || errors.Is(err, os.ErrNotExist) {
		return nil // somebody else was faster
	}
	if err != nil {
		return err
	}
	if err := dir.Remove(); err != nil {
		return err
	}
	o.tell(home, infoOf(e), api.LifeRemoved, "")
	return nil
}

const (
	endTime  = 20 * time.Second // for a supervisor to end its sandbox: its guest has 10 s to sync
	killTime = 5 * time.Second  // for a supervisor that was killed to be gone
)

// kill ends the sandbox at once, by its supervisor or with it.
func (r *remote) kill(ctx context.Context, remove bool) error {
	inner, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	err := r.ended(inner, r.call(inner, methodEnd, endParams{remove}, nil))
	if err == nil || ctx.Err() != nil {
		return err
	}
	if err := r.killSupervisor(ctx); err != nil {
		return err
	}
	inner, cancel = context.WithTimeoutCause(ctx, killTime, errors.New("its supervisor does not end"))
	defer cancel()
	return state.AwaitEnd(inner, r.entry)
}

// killSupervisor kills the process that listens at the socket. The kernel tells
// which that is; a number that was written down may be another's by now.
func (r *remote) killSupervisor(ctx context.Context) error {
	pid, conn, err := r.control.Peer(ctx)
	if errors.Is(err, control.ErrNotListening) {
		return nil // it is ending
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	supervisor, err := os.FindProcess(pid) // on Linux this takes hold of the process, not of its number
	if err != nil {
		return err
	}
	defer supervisor.Release()
	// If it had ended before that, its connection would have ended and its lock
	// would be free.
	if connEnded(conn) || !r.alive() {
		return nil
	}
	if err := supervisor.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// connEnded tells whether the other end of a connection is gone.
func connEnded(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	for {
		_, err := conn.Read(make([]byte, 512))
		if err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// Prune removes the sandboxes that do not run and for which keep, unless nil,
// is false. One whose record cannot be read, as a newer matchlock's, stays. It returns what it removed, also with an error.
func (o Options) Prune(ctx context.Context, keep func(api.Info) bool) (removed []api.Info, err error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	entries, err := state.List(home.Sandboxes())
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		info := infoOf(e)
		if e.Problem != nil || info.Status.Alive() || keep != nil && keep(info) {
			continue
		}
		switch err := o.Remove(ctx, info.ID, false); {
		case err == nil:
			removed = append(removed, info)
		case errors.Is(err, ErrRunning), errors.Is(err, ErrNotFound): // since we looked
		default:
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
