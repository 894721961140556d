package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
)

// A Hook is asked about operations, or told of them. The Op is the hook's own.
type Hook struct {
	Ops  []api.FileOp // none: all
	Path string       // a pattern, see NewFilter; empty: all paths. Either of two paths counts
	// Before may block an operation by an error, which the guest sees as EACCES, and
	// replace op.Data by as many bytes. One that panics, or does not return in time, has
	// blocked it.
	Before func(ctx context.Context, op *Op) error
	// After is told what was done, or failed, and may take as long.
	After func(ctx context.Context, op *Op)
}

// An Op is an operation on a file.
type Op struct {
	Kind          api.FileOp
	Path, NewPath string
	// Offset is where Data goes to or comes from, of a read or a write. A write without
	// Data is of the size, which is Offset then.
	Offset int64
	Data   []byte
	Err    error // what came of it, for After
}

// HookOptions say what is judged, and who is asked.
type HookOptions struct {
	Rules []api.FileRule
	Hooks []Hook // asked in order, when the rules allow it
	// Events is told of operations that change something, and of those that are denied;
	// of writes only the first to each open file. It must not wait.
	Events func(api.FileEvent)
	// Timeout is how long one call of a hook may take; 0 is 30 seconds.
	Timeout time.Duration
}

// maxCalls bounds hooks that run at once, those too that have not returned in time.
const maxCalls = 128

// hooks is a tree that is judged and watched.
type hooks struct {
	FS
	o     HookOptions
	rules []matcher // of o.Rules
	hooks []matcher // of o.Hooks
	calls chan struct{}

	// files are those that are open: what they are called may change.
	mu    sync.Mutex
	files map[*hookedFile]struct{}
}

// NewHooks has operations on a tree judged by rules, then by hooks. It closes the tree.
func NewHooks(fs FS, o HookOptions) (FS, error) {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	h := &hooks{FS: fs, o: o, calls: make(chan struct{}, maxCalls), files: make(map[*hookedFile]struct{})}
	for _, r := range o.Rules {
		if err := r.Validate(); err != nil {
			return nil, err
		}
		m, err := newMatcher(r.Ops, r.Path)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", r, err)
		}
		h.rules = append(h.rules, m)
	}
	for _, hook := range o.Hooks {
		m, err := newMatcher(hook.Ops, hook.Path)
		if err != nil {
			return nil, fmt.Errorf("hook: %w", err)
		}
		h.hooks = append(h.hooks, m)
	}
	return h, nil
}

// A matcher says what operations a rule or a hook is about.
type matcher struct {
	ops  []api.FileOp
	path patterns // none: all
}

func newMatcher(ops []api.FileOp, path string) (matcher, error) {
	m := matcher{ops: ops}
	if path == "" {
		return m, nil
	}
	var err error
	m.path, err = parsePatterns([]string{path})
	return m, err
}

func (m matcher) match(op *Op) bool {
	if len(m.ops) > 0 && !slices.Contains(m.ops, op.Kind) {
		return false
	}
	// A pattern of folders alone takes everything for one: to ask would be a race.
	folder := func() bool { return true }
	return len(m.path) == 0 || m.path.match(op.Path, folder) || op.NewPath != "" && m.path.match(op.NewPath, folder)
}

// judge asks rules and hooks whether an operation may be.
func (h *hooks) judge(op *Op) error {
	for i, m := range h.rules {
		if m.match(op) {
			if h.o.Rules[i].Action == api.FileDeny {
				h.event(op, api.Denied, h.o.Rules[i].String(), "")
				return syscall.EACCES
			}
			break
		}
	}
	for i, m := range h.hooks {
		before := h.o.Hooks[i].Before
		if before == nil || !m.match(op) {
			continue
		}
		// The hook may go on with what it has when we do not wait any longer.
		asked := *op
		asked.Data = slices.Clone(op.Data)
		if err := h.call(func(ctx context.Context) error { return before(ctx, &asked) }); err != nil {
			h.event(op, api.Denied, "", err.Error())
			return syscall.EACCES
		}
		if len(asked.Data) != len(op.Data) {
			h.event(op, api.Failed, "", fmt.Sprintf("a hook made %d bytes of %d", len(asked.Data), len(op.Data)))
			return syscall.EIO
		}
		op.Data = asked.Data
	}
	return nil
}

// call calls a hook, and waits for as long as it may take.
func (h *hooks) call(f func(context.Context) error) error {
	select {
	case h.calls <- struct{}{}:
	default:
		return errors.New("too many hooks have not returned")
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.o.Timeout)
	defer cancel()
	result := make(chan error, 1)
	go func() {
		defer func() { <-h.calls }()
		defer func() {
			if r := recover(); r != nil {
				result <- fmt.Errorf("hook: panic: %v", r)
			}
		}()
		result <- f(ctx)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("hook: not done after %v", h.o.Timeout)
	}
}

// tell says what came of an operation; quiet: by no event.
func (h *hooks) tell(op *Op, err error, quiet bool) {
	switch {
	case quiet:
	case err != nil:
		h.event(op, api.Failed, "", err.Error())
	default:
		h.event(op, api.Allowed, "", "")
	}
	for i, m := range h.hooks {
		after := h.o.Hooks[i].After
		if after == nil || !m.match(op) {
			continue
		}
		told := *op
		told.Data, told.Err = slices.Clone(op.Data), err
		h.call(func(ctx context.Context) error { // which cannot change it any more
			after(ctx, &told)
			return nil
		})
	}
}

func (h *hooks) event(op *Op, verdict api.Verdict, rule, reason string) {
	if h.o.Events != nil {
		h.o.Events(api.FileEvent{Time: time.Now(), Op: op.Kind, Path: op.Path, NewPath: op.NewPath, Verdict: verdict, Rule: rule, Reason: reason})
	}
}

// do judges an operation, and does it.
func (h *hooks) do(op *Op, f func() error) error {
	if err := h.judge(op); err != nil {
		return err
	}
	err := f()
	h.tell(op, err, op.Kind == api.FileRead || op.Kind == api.FileList)
	return err
}

func (h *hooks) ReadDir(path string) (entries []DirEntry, err error) {
	err = h.do(&Op{Kind: api.FileList, Path: path}, func() error {
		entries, err = h.FS.ReadDir(path)
		return err
	})
	return entries, err
}

func (h *hooks) Readlink(path string) (target string, err error) {
	err = h.do(&Op{Kind: api.FileRead, Path: path}, func() error {
		target, err = h.FS.Readlink(path)
		return err
	})
	return target, err
}

func (h *hooks) Open(path string, write bool) (File, error) {
	f, err := h.FS.Open(path, write)
	return h.opened(path, f, err)
}

func (h *hooks) Create(path string, mode uint32, owner Owner) (f File, err error) {
	err = h.do(&Op{Kind: api.FileCreate, Path: path}, func() error {
		f, err = h.FS.Create(path, mode, owner)
		return err
	})
	return h.opened(path, f, err)
}

func (h *hooks) Mknod(path string, mode uint32, owner Owner) error {
	return h.do(&Op{Kind: api.FileCreate, Path: path}, func() error { return h.FS.Mknod(path, mode, owner) })
}

func (h *hooks) Mkdir(path string, mode uint32, owner Owner) error {
	return h.do(&Op{Kind: api.FileCreate, Path: path}, func() error { return h.FS.Mkdir(path, mode, owner) })
}

func (h *hooks) Symlink(target, path string, owner Owner) error {
	return h.do(&Op{Kind: api.FileCreate, Path: path}, func() error { return h.FS.Symlink(target, path, owner) })
}

func (h *hooks) Link(oldPath, newPath string) error {
	return h.do(&Op{Kind: api.FileLink, Path: oldPath, NewPath: newPath}, func() error { return h.FS.Link(oldPath, newPath) })
}

func (h *hooks) Unlink(path string) error {
	return h.do(&Op{Kind: api.FileDelete, Path: path}, func() error { return h.FS.Unlink(path) })
}

func (h *hooks) Rmdir(path string) error {
	return h.do(&Op{Kind: api.FileDelete, Path: path}, func() error { return h.FS.Rmdir(path) })
}

func (h *hooks) Rename(oldPath, newPath string, flags uint32) error {
	return h.do(&Op{Kind: api.FileRename, Path: oldPath, NewPath: newPath}, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if err := h.FS.Rename(oldPath, newPath, flags); err != nil {
			return err
		}
		for f := range h.files {
			switch {
			case within(f.path, oldPath):
				f.path = newPath + f.path[len(oldPath):]
			case flags&RenameExchange != 0 && within(f.path, newPath):
				f.path = oldPath + f.path[len(newPath):]
			}
		}
		return nil
	})
}

func (h *hooks) SetAttr(path string, c Change) (a Attr, err error) {
	op := &Op{Kind: api.FileAttr, Path: path}
	if c.Size != nil {
		size := &Op{Kind: api.FileWrite, Path: path, Offset: *c.Size}
		if c.Mode == nil && c.UID == nil && c.GID == nil {
			op = size // and the times that go with it
		} else if err := h.judge(size); err != nil {
			return Attr{}, err
		}
	}
	err = h.do(op, func() error {
		a, err = h.FS.SetAttr(path, c)
		return err
	})
	return a, err
}

func (h *hooks) Setxattr(path, name string, value []byte, flags int) error {
	return h.do(&Op{Kind: api.FileAttr, Path: path}, func() error { return h.FS.Setxattr(path, name, value, flags) })
}

func (h *hooks) Removexattr(path, name string) error {
	return h.do(&Op{Kind: api.FileAttr, Path: path}, func() error { return h.FS.Removexattr(path, name) })
}

// hookedFile is a file whose reads and writes are judged by what it is called now.
type hookedFile struct {
	File
	h       *hooks
	path    string // guarded by h.mu
	written bool   // guarded by h.mu: an event has told of it
}

func (h *hooks) opened(path string, f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	hooked := &hookedFile{File: f, h: h, path: path}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files[hooked] = struct{}{}
	return hooked, nil
}

func (f *hookedFile) op(kind api.FileOp, offset int64, data []byte) *Op {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return &Op{Kind: kind, Path: f.path, Offset: offset, Data: data}
}

func (f *hookedFile) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.File.ReadAt(p, offset)
	if err != nil && err != io.EOF {
		return 0, err
	}
	op := f.op(api.FileRead, offset, p[:n])
	if err := f.h.judge(op); err != nil {
		clear(p[:n])
		return 0, err
	}
	copy(p, op.Data)
	f.h.tell(op, nil, true)
	return n, err
}

// write judges a write and does it.
func (f *hookedFile) write(offset int64, data []byte, write func(data []byte) error) error {
	op := f.op(api.FileWrite, offset, data)
	if err := f.h.judge(op); err != nil {
		return err
	}
	err := write(op.Data)
	f.h.mu.Lock()
	quiet := f.written && err == nil
	f.written = true
	f.h.mu.Unlock()
	f.h.tell(op, err, quiet)
	return err
}

func (f *hookedFile) WriteAt(p []byte, offset int64) (n int, err error) {
	err = f.write(offset, p, func(data []byte) error {
		n, err = f.File.WriteAt(data, offset)
		return err
	})
	return n, err
}

func (f *hookedFile) Truncate(size int64) error {
	return f.write(size, nil, func([]byte) error { return f.File.Truncate(size) })
}

func (f *hookedFile) Allocate(mode uint32, offset, length int64) error {
	return f.write(offset, nil, func([]byte) error { return f.File.Allocate(mode, offset, length) })
}

func (f *hookedFile) Close() error {
	f.h.mu.Lock()
	delete(f.h.files, f)
	f.h.mu.Unlock()
	return f.File.Close()
}
