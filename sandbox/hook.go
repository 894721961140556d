package sandbox

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/intercept"
	"github.com/matchlock/matchlock/internal/workspace"
)

// Hook judges or changes requests and their responses by functions of this process,
// as the hooks of a configuration do by rules. TLS is ended on this host where a hook
// may be about a host. An error that a function returns blocks the request, which the
// guest sees as a 403; so does a panic, or no return in time. The functions may be
// called by several goroutines at once.
type Hook struct {
	Name    string        // for events and errors
	Hosts   []string      // names, or "*.suffix"; none: all
	Timeout time.Duration // of one call; 0 is 5 s

	// Before, unless nil, is asked before a request goes out. It sees placeholders in
	// the place of secrets.
	Before func(context.Context, *Request) error
	// After, unless nil, is asked when the response has come, from which secrets have
	// been taken out.
	After func(context.Context, *Response) error
}

// Request is what a Hook sees of a request. It may change Path, Query, Header and Body.
type Request struct {
	Host   string // the name that the guest has connected to, or the address
	Port   uint16
	Method string

	Path   string // as it stands in the request, escaped
	Query  string // without the question mark
	Header http.Header
	// Body is nil where there is none. A hook may put another reader in its place, one
	// of it or of something else; it is not to be read before the hook has returned,
	// for it may never end.
	Body io.ReadCloser
}

// Response is what a Hook sees of a response. It may change Header and Body.
type Response struct {
	Request *Request // as the guest made it, without its body
	Status  int
	Header  http.Header
	Body    io.ReadCloser // as that of a Request
}

// callback is the hook as package intercept has it.
func (h Hook) callback() intercept.Callback {
	c := intercept.Callback{Name: h.Name, Hosts: h.Hosts, Timeout: h.Timeout}
	if h.Before != nil {
		c.Before = func(ctx context.Context, r *intercept.Request) error { return h.Before(ctx, (*Request)(r)) }
	}
	if h.After != nil {
		c.After = func(ctx context.Context, r *intercept.Response) error {
			seen := &Response{(*Request)(r.Request), r.Status, r.Header, r.Body}
			err := h.After(ctx, seen)
			r.Header, r.Body = seen.Header, seen.Body
			return err
		}
	}
	return c
}

func callbacks(hooks []Hook) (all []intercept.Callback) {
	for _, h := range hooks {
		all = append(all, h.callback())
	}
	return all
}

// FileHook judges what the guest does with files of its mounts, or is told of it. The
// functions may be called by several goroutines at once, and have 30 s.
type FileHook struct {
	Mount string       // where the mount is in the guest; empty: all mounts
	Ops   []api.FileOp // none: all
	// Path is a pattern as api.Mount.Hide has them; empty: all paths. Of an operation with
	// two paths either counts.
	Path string

	// Before, unless nil, may block an operation by an error, which the guest sees as
	// EACCES, and replace op.Data by as many bytes. A panic, or no return in time, blocks.
	Before func(ctx context.Context, op *FileOp) error
	// After, unless nil, is told what was done, or failed.
	After func(ctx context.Context, op *FileOp)
}

// FileOp is an operation on a file, as a FileHook sees it. Paths are those in the mount,
// the guest's choice.
type FileOp struct {
	Kind          api.FileOp
	Path, NewPath string // NewPath is of api.FileRename and api.FileLink alone
	// Offset is where Data goes to or comes from, of a read or a write. A write without
	// Data is of the file's size, which is Offset then.
	Offset int64
	Data   []byte
	Err    error // what came of it, for After
}

// hook is the hook as package workspace has it.
func (h FileHook) hook() workspace.Hook {
	hook := workspace.Hook{Ops: h.Ops, Path: h.Path}
	if h.Before != nil {
		hook.Before = func(ctx context.Context, op *workspace.Op) error { return h.Before(ctx, (*FileOp)(op)) }
	}
	if h.After != nil {
		hook.After = func(ctx context.Context, op *workspace.Op) { h.After(ctx, (*FileOp)(op)) }
	}
	return hook
}
