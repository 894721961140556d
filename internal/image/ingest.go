package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/matchlock/matchlock/internal/compress"
	"github.com/matchlock/matchlock/internal/disk"
)

// layerWorkers is how many layers are worked on at once.
const layerWorkers = 4

// part is one layer on its way into the store.
type part struct {
	name   string        // for progress: the digest, or the name in an archive
	what   string        // for messages
	desc   v1.Descriptor // digest and size are checked; no digest and size -1: not known before the layer was read
	diffID v1.Hash       // checked as well; none: not known
	// open returns the blob, to be read once. The context ends its life.
	open func(context.Context) (io.ReadCloser, error)
}

// staged is a layer that was read and checked, in files that have no final name yet.
type staged struct {
	desc   v1.Descriptor
	diffID v1.Hash
	blob   string // path of the blob
	layer  string // path of the EROFS file; empty if the layer is only to be merged
	clings bool   // see clingsFile
	tar    int64  // bytes of the tar
}

// bring reads all layers of an image, several at once, and hands each to done as soon as it is there; a layer for which
// have answers yes is left alone. The first error ends the others. With single false for a diff id, the layer is kept
// as a blob only, and checked against its digest only: merge does the rest.
func (in *intake) bring(ctx context.Context, parts []part, single func(v1.Hash) bool, have func(part) bool, done func(int, staged) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	free := make(chan struct{}, layerWorkers)
	for i, p := range parts {
		if slices.ContainsFunc(parts[:i], func(q part) bool { return p.same(q) }) {
			continue
		}
		free <- struct{}{}
		workers.Go(func() {
			defer func() { <-free }()
			if have(p) {
				in.report(Event{Layer: p.name, State: Ready, Done: p.desc.Size, Total: p.desc.Size})
				return
			}
			got, err := in.ingest(ctx, p, single(p.diffID))
			if err == nil {
				err = done(i, got)
			}
			if err != nil {
				cancel(fmt.Errorf("%s: %w", p.what, err))
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// same reports whether two parts of an image are one blob and become one layer.
func (p part) same(q part) bool {
	return usable(p.desc.Digest) && p.desc.Digest == q.desc.Digest && p.diffID == q.diffID
}

// ingest reads one layer: into a blob file as it comes and, if it is to be unpacked, in the same pass into an EROFS
// file. A goroutine reads, hashes and stores the blob, another unpacks it, this one builds the file system.
func (in *intake) ingest(ctx context.Context, p part, unpack bool) (got staged, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return got, err
	}
	raw, err := p.open(ctx)
	if err != nil {
		return got, err
	}
	defer raw.Close()
	blob, err := in.create("blob-")
	if err != nil {
		return got, err
	}
	defer blob.Close() // what counts is the error of closeSynced, before

	blobHash := sha256.New()
	meter := &meter{ctx: ctx, r: raw, limit: in.maxBytes, over: in.tooLarge(), report: in.report}
	meter.event = Event{Layer: p.name, State: Reading, Total: p.desc.Size}
	if p.desc.Size >= 0 {
		meter.limit, meter.over = p.desc.Size, fmt.Errorf("more than the %d bytes of its manifest", p.desc.Size)
	}
	stored := readAhead(io.TeeReader(meter, io.MultiWriter(blob, blobHash)))
	defer stored.Close()
	defer cancel()

	packed := bufio.NewReaderSize(stored, 64<<10)
	format, err := compress.Detect(packed)
	if err != nil {
		return got, err
	}
	diffHash := blobHash // of a tar that is not packed
	if unpack {
		var tarHash io.Writer = io.Discard
		if format != compress.Plain {
			diffHash = sha256.New()
			tarHash = diffHash
		}
		tar, err := openTar(packed, format, tarHash)
		if err != nil {
			return got, err
		}
		defer tar.Close()
		defer cancel() // before the closing, which waits for readers that wait for data
		if err := in.unpack(tar, usable(p.diffID), &got); err != nil {
			return got, err
		}
		in.tars.Store(sum(diffHash), got.tar)
	}
	// What follows the end of the packed stream is part of the blob.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return got, err
	}

	got.desc = v1.Descriptor{Digest: sum(blobHash), Size: meter.event.Done, MediaType: mediaType(format)}
	got.blob = blob.Name()
	switch {
	case p.desc.Size >= 0 && got.desc.Size != p.desc.Size:
		return got, fmt.Errorf("%d bytes, not the %d of its manifest", got.desc.Size, p.desc.Size)
	case usable(p.desc.Digest) && got.desc.Digest != p.desc.Digest:
		return got, fmt.Errorf("its content is %s", got.desc.Digest)
	}
	if unpack {
		got.diffID = sum(diffHash)
		if usable(p.diffID) && got.diffID != p.diffID {
			return got, fmt.Errorf("unpacks to %s, not to the %s of the configuration", got.diffID, p.diffID)
		}
	} else {
		got.diffID = p.diffID
	}
	if err := in.closeSynced(blob); err != nil {
		return got, err
	}
	in.report(Event{Layer: p.name, State: Ready, Done: got.desc.Size, Total: got.desc.Size})
	return got, nil
}

// openTar unpacks a blob ahead of its reader. The hash gets the tar too.
func openTar(packed io.Reader, format compress.Format, tarHash io.Writer) (io.ReadCloser, error) {
	switch format {
	case compress.Plain:
		return io.NopCloser(io.TeeReader(packed, tarHash)), nil
	case compress.Gzip, compress.Zstd:
	default:
		return nil, fmt.Errorf("packed with %s, which layers are not", format)
	}
	unpacked, err := format.NewReader(packed)
	if err != nil {
		return nil, err
	}
	return &unpackedTar{readAhead(io.TeeReader(unpacked, tarHash)), unpacked}, nil
}

type unpackedTar struct {
	*aheadReader
	unpacked io.Closer
}

func (t *unpackedTar) Close() error {
	t.aheadReader.Close() // first: it uses the other
	return t.unpacked.Close()
}

// unpack makes the EROFS file of one layer. A layer that is known by its diff id may lack the mark at a tar's end.
func (in *intake) unpack(tar io.Reader, known bool, got *staged) error {
	layer, err := in.create("layer-")
	if err != nil {
		return err
	}
	defer layer.Close() // what counts is the error of closeSynced, below
	writer := disk.NewLayerWriter(layer, disk.LayerOptions{MaxBytes: in.maxBytes, AllowNoEnd: known})
	if got.tar, err = in.addTar(writer, tar); err != nil {
		return err
	}
	info, err := in.finish(writer, got.tar)
	if err != nil {
		return err
	}
	got.layer = layer.Name()
	got.clings = info.Opaque || info.Implied > 0
	return in.closeSynced(layer)
}

// addTar adds a tar to a layer within the image's budget, and returns how many bytes it has.
func (in *intake) addTar(writer *disk.LayerWriter, tar io.Reader) (int64, error) {
	b := &budget{in: in, r: tar}
	err := writer.AddTar(b)
	if errors.Is(err, disk.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return b.n, err
}

// merge makes one EROFS file of several layers, base first, each checked against its diff id.
func (in *intake) merge(ctx context.Context, diffIDs []v1.Hash, blob func(v1.Hash) string) (path string, err error) {
	chain := chainID(diffIDs).String()
	file, err := in.create("merged-")
	if err != nil {
		return "", err
	}
	defer file.Close() // what counts is the error of closeSynced, below
	writer := disk.NewLayerWriter(file, disk.LayerOptions{Base: true, MaxBytes: in.maxBytes, AllowNoEnd: true})
	var tars int64
	for i, id := range diffIDs {
		in.report(Event{Layer: chain, State: Merging, Done: int64(i), Total: int64(len(diffIDs))})
		tar, err := in.mergeOne(ctx, writer, blob(id), id)
		tars += tar
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", id, err)
		}
	}
	if _, err := in.finish(writer, tars); err != nil {
		return "", err
	}
	if err := in.closeSynced(file); err != nil {
		return "", err
	}
	in.report(Event{Layer: chain, State: Ready, Done: int64(len(diffIDs)), Total: int64(len(diffIDs))})
	return file.Name(), nil
}

func (in *intake) mergeOne(ctx context.Context, writer *disk.LayerWriter, path string, diffID v1.Hash) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	packed := bufio.NewReaderSize(&meter{ctx: ctx, r: file, limit: in.maxBytes, over: in.tooLarge()}, 256<<10)
	format, err := compress.Detect(packed)
	if err != nil {
		return 0, err
	}
	tarHash := sha256.New()
	tar, err := openTar(packed, format, tarHash)
	if err != nil {
		return 0, err
	}
	defer tar.Close()
	n, err := in.addTar(writer, tar)
	if err == nil && sum(tarHash) != diffID {
		err = fmt.Errorf("unpacks to %s, not to what the configuration says", sum(tarHash))
	}
	return n, err
}

// finish completes a layer of tars of that many bytes. The holes of sparse files count as the image's bytes too.
func (in *intake) finish(writer *disk.LayerWriter, tars int64) (disk.LayerInfo, error) {
	info, err := writer.Close()
	if err == nil && in.unpacked.Add(max(0, info.Unpacked-tars)) > in.maxBytes {
		err = in.tooLarge()
	}
	return info, err
}

// keep gives a staged layer its final names.
func (w *session) keep(got staged) error {
	if err := os.Rename(got.blob, w.blobPath(got.desc.Digest)); err != nil {
		return err
	}
	if got.layer == "" {
		return nil
	}
	if got.clings {
		mark, err := os.OpenFile(w.layerPath(clingsFile(got.diffID)), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		mark.Close()
	}
	if err := os.Rename(got.layer, w.layerPath(layerFile(got.diffID))); err != nil {
		return err
	}
	return w.setVerified(got.desc.Digest, got.diffID)
}

// setVerified notes what a blob was seen to unpack to. Only this makes a stored blob and a stored layer belong
// together: a manifest that pairs them could lie, to lay hands on another image's layer.
func (w *session) setVerified(digest, diffID v1.Hash) error {
	link := filepath.Join(w.dir, "verified-"+digest.Hex)
	if err := os.Symlink(diffID.Hex, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(link, w.verifiedPath(digest))
}

// isVerified reports whether the store has the blob and has seen it unpack to the diff id.
func (s *Store) isVerified(desc v1.Descriptor, diffID v1.Hash) bool {
	target, err := os.Readlink(s.verifiedPath(desc.Digest))
	if err != nil || target != diffID.Hex {
		return false
	}
	return s.hasBlob(desc)
}

// hasBlob reports whether the store has a blob, which it has checked to be the one of that digest.
func (s *Store) hasBlob(desc v1.Descriptor) bool {
	info, err := os.Stat(s.blobPath(desc.Digest))
	return err == nil && info.Size() == desc.Size
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

func mediaType(format compress.Format) types.MediaType {
	switch format {
	case compress.Gzip:
		return types.OCILayer
	case compress.Zstd:
		return types.OCILayerZStd
	}
	return types.OCIUncompressedLayer
}

// meter counts what is read and reports it. It ends when its context does, or with over after limit bytes.
type meter struct {
	ctx    context.Context
	r      io.Reader
	limit  int64
	over   error
	event  Event       // Done counts
	report func(Event) // may be nil
}

func (m *meter) Read(p []byte) (int, error) {
	if err := context.Cause(m.ctx); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	m.event.Done += int64(n)
	if m.event.Done > m.limit {
		return n, m.over
	}
	if m.report != nil {
		m.report(m.event)
	}
	return n, err
}

// budget counts what an image unpacks to, all layers together, and ends it when that is too much. Headers count with the
// files: a tar of nothing else has to end some day too.
type budget struct {
	in *intake
	r  io.Reader
	n  int64
}

func (b *budget) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.in.unpacked.Add(int64(n)) > b.in.maxBytes {
		return n, b.in.tooLarge()
	}
	return n, err
}
