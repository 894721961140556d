package boot

import (
	"context"
	"io"
)

// A meter passes bytes on, tells how many, and stops when its context ends.
type meter struct {
	ctx  context.Context
	tell func(done int64)
	done int64
	r    io.Reader
	w    io.Writer
}

func (f *finder) meter(ctx context.Context, phase string, r io.Reader, total int64) io.Reader {
	return &meter{ctx: ctx, r: r, tell: func(done int64) { f.Progress(phase, done, total) }}
}

func (f *finder) meterTo(ctx context.Context, phase string, w io.Writer) io.Writer {
	return &meter{ctx: ctx, w: w, tell: func(done int64) { f.Progress(phase, done, 0) }}
}

func (m *meter) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(p)
	m.add(n)
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.w.Write(p)
	m.add(n)
	return n, err
}

// add tells of each megabyte.
func (m *meter) add(n int) {
	before := m.done >> 20
	m.done += int64(n)
	if m.done>>20 != before {
		m.tell(m.done)
	}
}
