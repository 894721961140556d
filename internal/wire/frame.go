package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Limits of a frame's payload, in bytes.
const (
	// MaxData is the most that one frame of data carries, and the most that the
	// host accepts of any frame from a guest: 64 KiB less what makes such a frame
	// two full writes of the multiplexer, and not a third for the last few bytes.
	MaxData = 2*maxPayload - FrameHeader

	// MaxRequest is the most that the guest accepts of a request: an environment
	// and an argument vector of the size Linux allows fit.
	MaxRequest = 4 << 20
)

// FrameHeader is the size of what precedes a payload: its kind, one byte, and
// its length, four, the highest first.
const FrameHeader = 5

// A FrameReader reads frames from a stream, for one goroutine at a time. It
// reads no further than the end of the frame asked for.
type FrameReader struct {
	r      io.Reader
	header [FrameHeader]byte
	buf    []byte
}

// NewFrameReader returns a reader of the frames in r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next returns the next frame; a payload beyond limit is an error, found before
// anything is allocated for it. The payload is valid until the next call. The
// error is io.EOF only when the stream ends between two frames.
func (f *FrameReader) Next(limit int) (kind byte, payload []byte, err error) {
	if _, err := io.ReadFull(f.r, f.header[:]); err != nil {
		return 0, nil, err
	}
	kind, size := f.header[0], binary.BigEndian.Uint32(f.header[1:])
	if uint64(size) > uint64(limit) {
		return 0, nil, fmt.Errorf("frame of kind %d: %d bytes, at most %d are allowed", kind, size, limit)
	}
	if cap(f.buf) < int(size) || cap(f.buf) > MaxData && size <= MaxData {
		f.buf = make([]byte, size) // also lets go of the room that one large request took
	}
	payload = f.buf[:size]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, payload, nil
}

// A FrameWriter writes frames to a stream. Several goroutines may use it: each
// frame is one Write, and frames never mix. After an error, when half a frame may
// be on its way, it returns that error for ever.
type FrameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

// NewFrameWriter returns a writer of frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// WriteFrame writes one frame.
func (f *FrameWriter) WriteFrame(kind byte, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = append(f.buf[:0], make([]byte, FrameHeader)...)
	f.buf = append(f.buf, payload...)
	err := f.write(kind, f.buf)
	if cap(f.buf) > FrameHeader+MaxData {
		f.buf = nil
	}
	return err
}

// WriteFilled writes the frame whose payload lies in frame behind FrameHeader
// bytes of room for the header: the way without a copy.
func (f *FrameWriter) WriteFilled(kind byte, frame []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(kind, frame)
}

func (f *FrameWriter) write(kind byte, frame []byte) error {
	if f.err != nil {
		return f.err
	}
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-FrameHeader))
	_, f.err = f.w.Write(frame)
	return f.err
}
