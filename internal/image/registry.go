package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry is one repository of a registry, to read from. The module's own client is not used for blobs: it cannot go
// on where a connection broke off.
type registry struct {
	repo   name.Repository
	client *http.Client
	close  func()
	idle   time.Duration // see Store
	pause  time.Duration
}

const (
	maxFailures = 6   // attempts in a row that bring no byte of a blob
	maxResumes  = 100 // attempts in all, for one blob
	maxPause    = 5 * time.Second
)

// dial finds out how a registry wants to be spoken to, and with which credentials.
func (s *Store) dial(ctx context.Context, repo name.Repository) (*registry, error) {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repo.RegistryStr(), err)
	}
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: s.idle}).DialContext,
		TLSHandshakeTimeout:   s.idle,
		ResponseHeaderTimeout: s.idle,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // blobs are to come as they are
	}
	retrying := transport.NewRetry(base, transport.WithRetryStatusCodes(
		http.StatusRequestTimeout, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	authorized, err := transport.NewWithContext(ctx, repo.Registry, auth, transport.NewUserAgent(retrying, "matchlock"),
		[]string{repo.Scope(transport.PullScope)})
	if err != nil {
		base.CloseIdleConnections()
		return nil, err
	}
	return &registry{
		repo:   repo,
		client: &http.Client{Transport: authorized, CheckRedirect: checkRedirect},
		close:  base.CloseIdleConnections,
		idle:   s.idle,
		pause:  s.pause,
	}, nil
}

// checkRedirect keeps a registry from sending us to where it could not go itself: in the clear, or into this network.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from, to := via[0].URL, req.URL
	switch {
	case len(via) >= 10:
		return errors.New("too many redirects")
	case from.Scheme == "https" && to.Scheme != "https":
		return fmt.Errorf("redirected to %s, which is not encrypted", to.Redacted())
	case isInside(to) && from.Hostname() != to.Hostname():
		return fmt.Errorf("redirected to %s, an address inside this network", to.Redacted())
	}
	return nil
}

func isInside(u *url.URL) bool {
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return u.Hostname() == "localhost"
	}
	addr = addr.Unmap()
	return addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsUnspecified()
}

func (r *registry) get(ctx context.Context, kind, id string, header http.Header, accept ...int) (*http.Response, error) {
	u := url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(), Path: "/v2/" + r.repo.RepositoryStr() + "/" + kind + "/" + id}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, accept...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

var manifestTypes = []string{
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}

// manifest fetches a manifest or an index by tag or digest. Its digest is not checked.
func (r *registry) manifest(ctx context.Context, id string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.idle)
	defer cancel()
	resp, err := r.get(ctx, "manifests", id, http.Header{"Accept": {strings.Join(manifestTypes, ",")}}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := readAll(resp.Body, maxManifestBytes)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", id, err)
	}
	return data, nil
}

// blob returns a reader of a blob's bytes, as many as its descriptor says. Nothing is asked for before the first Read.
func (r *registry) blob(ctx context.Context, d v1.Descriptor) *blobReader {
	return &blobReader{ctx: ctx, registry: r, desc: d}
}

// blobReader reads a blob and goes on where a connection broke off: with a range request, or, if the server knows
// none, by reading once more what was read already. What it reads is not checked.
type blobReader struct {
	ctx      context.Context
	registry *registry
	desc     v1.Descriptor

	offset   int64
	body     io.ReadCloser // nil: none is open
	stop     context.CancelFunc
	watchdog *time.Timer // ends the request when nothing comes
	failures int         // since the last byte
	resumes  int
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.offset < b.desc.Size {
		n, err := b.attempt(p[:min(int64(len(p)), b.desc.Size-b.offset)])
		if n > 0 {
			b.offset += int64(n)
			b.failures = 0
			return n, nil // an error will come again
		}
		if err == nil {
			continue
		}
		b.Close()
		b.failures++
		b.resumes++
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		if isFinal(err) || b.failures > maxFailures || b.resumes > maxResumes {
			return 0, fmt.Errorf("after %d of %d bytes: %w", b.offset, b.desc.Size, err)
		}
		select {
		case <-time.After(min(b.registry.pause<<(b.failures-1), maxPause)):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	return 0, io.EOF
}

// attempt reads from the open request, or from a new one.
func (b *blobReader) attempt(p []byte) (int, error) {
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	b.watchdog.Reset(b.registry.idle)
	n, err := b.body.Read(p)
	if err == io.EOF && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *blobReader) open() error {
	ctx, stop := context.WithCancel(b.ctx)
	b.stop = stop
	b.watchdog = time.AfterFunc(b.registry.idle, stop)
	header := http.Header{}
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
	}
	resp, err := b.registry.get(ctx, "blobs", b.desc.Digest.String(), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	b.body = resp.Body
	if resp.StatusCode == http.StatusPartialContent {
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.offset)) {
			return fmt.Errorf("asked for the bytes from %d, the server sends %q", b.offset, got)
		}
		return nil
	}
	for skip := b.offset; skip > 0; {
		b.watchdog.Reset(b.registry.idle)
		n, err := io.CopyN(io.Discard, b.body, min(skip, 1<<20))
		skip -= n
		if err != nil {
			return err
		}
	}
	return nil
}

// Close ends the request that is open, if there is one.
func (b *blobReader) Close() error {
	if b.stop != nil {
		b.stop()
		b.watchdog.Stop()
	}
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	return nil
}

// isFinal reports whether it would not help to ask again.
func isFinal(err error) bool {
	var refused *transport.Error
	return errors.As(err, &refused) && refused.StatusCode < 500 && refused.StatusCode != http.StatusTooManyRequests
}

// explain says what a registry's refusal means.
func explain(ref string, err error) error {
	var refused *transport.Error
	if errors.As(err, &refused) {
		switch code := refused.StatusCode; {
		case code == http.StatusNotFound && strings.Contains(refused.Request.URL.Path, "/manifests/"):
			return &NotFoundError{Ref: ref, Err: err}
		case code == http.StatusUnauthorized || code == http.StatusForbidden:
			err = fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return fmt.Errorf("image %q: %w", ref, err)
}
