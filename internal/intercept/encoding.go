package intercept

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow is what a decoder may keep of what is behind it, in bytes: what
	// RFC 8878, 3.1.1.1.2, asks for and RFC 7932 allows is no more.
	maxWindow = 8 << 20

	maxEncodings = 2        // one on top of the other
	maxRest      = 64 << 10 // bytes behind the end of what is encoded
)

// known are the encodings that can be undone.
var known = []string{"gzip", "br", "zstd", "identity"}

// acceptKnownEncodings cuts a request's Accept-Encoding to what can be undone.
func acceptKnownEncodings(h http.Header) {
	var kept []string
	for _, list := range h["Accept-Encoding"] {
		for part := range strings.SplitSeq(list, ",") {
			part = strings.TrimSpace(part)
			name, _, _ := strings.Cut(part, ";")
			for _, k := range known {
				if strings.EqualFold(strings.TrimSpace(name), k) {
					kept = append(kept, part)
				}
			}
		}
	}
	if len(kept) == 0 {
		kept = []string{"identity"} // without the header a server may choose
	}
	h["Accept-Encoding"] = []string{strings.Join(kept, ", ")}
}

// errEncoding says that a body cannot be looked into.
var errEncoding = errors.New("encoding that cannot be looked into")

// decoded undoes the encodings of a body, named in h, and has h say what it is now.
// An encoding that it does not know is an error.
//
// It returns the body in any case.
func decoded(h http.Header, body io.ReadCloser) (io.ReadCloser, error) {
	var encodings []string
	for _, list := range h["Content-Encoding"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" && name != "identity" {
				encodings = append(encodings, name)
			}
		}
	}
	if len(encodings) > maxEncodings {
		return body, fmt.Errorf("%w: %d, one on top of the other", errEncoding, len(encodings))
	}
	r := io.Reader(body)
	var outer *decoder
	for i := len(encodings) - 1; i >= 0; i-- {
		switch encodings[i] {
		case "gzip", "x-gzip", "br", "zstd":
			outer = &decoder{encoding: encodings[i], from: r}
			r = outer
		default:
			return body, fmt.Errorf("%w: %.40q", errEncoding, encodings[i])
		}
	}
	h.Del("Content-Encoding")
	if outer == nil {
		return body, nil
	}
	return &decodedBody{outer, body}, nil
}

// decodedBody reads what is decoded, and closes what it is decoded from.
type decodedBody struct {
	*decoder
	from io.ReadCloser
}

func (b *decodedBody) Read(p []byte) (int, error) {
	n, err := b.decoder.Read(p)
	if err == io.EOF {
		// The encoding has an end of its own, before that of the body, which brings
		// the trailers.
		if _, err := io.CopyN(io.Discard, b.from, maxRest); err != io.EOF {
			return n, fmt.Errorf("%s: more behind its end", b.encoding)
		}
	}
	return n, err
}

func (b *decodedBody) Close() error {
	b.stop()
	return b.from.Close()
}

// decoder begins with the first Read: beginning reads a header.
type decoder struct {
	encoding string
	from     io.Reader
	r        io.Reader
	zstd     *zstd.Decoder
	err      error
}

func (d *decoder) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if d.r == nil {
		if d.err = d.begin(); d.err != nil {
			return 0, d.err
		}
	}
	n, err := d.r.Read(p)
	if err != nil {
		if err != io.EOF {
			err = fmt.Errorf("%s: %w", d.encoding, err)
		}
		d.err = err
	}
	return n, err
}

func (d *decoder) begin() (err error) {
	switch d.encoding {
	case "br":
		d.r = brotli.NewReader(d.from)
	case "zstd":
		d.zstd, err = zstd.NewReader(d.from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		d.r = d.zstd
	default:
		d.r, err = gzip.NewReader(d.from)
	}
	if err == io.EOF {
		return err // an empty body, of HEAD or 304, has no header
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.encoding, err)
	}
	return nil
}

// stop gives back what the decoder keeps. Nothing is read after it.
func (d *decoder) stop() {
	if inner, ok := d.from.(*decoder); ok {
		inner.stop()
	}
	d.err = io.ErrClosedPipe
	if d.zstd != nil {
		d.zstd.Close()
	}
}

// changed has the headers of a response say that its body may be another than the
// server sent.
func changed(resp *http.Response) {
	resp.ContentLength = -1
	for _, name := range []string{"Content-Length", "Accept-Ranges", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest"} {
		resp.Header.Del(name)
	}
	if tag := resp.Header.Get("Etag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		resp.Header.Set("Etag", "W/"+tag)
	}
}
