package saved

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/matchlock/matchlock/internal/compress"
	"github.com/matchlock/matchlock/internal/disk"
)

// An archive is a machine as one file: a tar, packed with zstd. Its first entry is the manifest. After
// it come the contents of the files, in the manifest's order, in pieces named FILE/OFFSET: what is not
// there is zeros. So holes cost nothing, and tar can list it.
const (
	manifestName   = "manifest.json"
	archiveKind    = "matchlock-snapshot"
	archiveVersion = 1

	maxManifest = 256 << 10
	maxPiece    = 1 << 20
	pieceAlign  = 4096
	maxFiles    = 64 // the extra ones among them
)

type manifest struct {
	Kind     string          `json:"kind"`
	Version  int             `json:"version"`
	Requires json.RawMessage `json:"requires,omitempty"`
	About    json.RawMessage `json:"about,omitempty"`
	Files    []stored        `json:"files"` // the machine's, then the extra ones; of each the name, size and sum
}

// ExtraFile is a file that goes with a machine from one host to another, and is none of its own: of
// its image. The name is a word in lower case with a number, as in lower-0.
type ExtraFile struct{ Name, Path string }

var extraName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z]{1,16}-(0|[1-9][0-9]?)$`)
})

// Limits bound what Import takes. The zero value is fine.
type Limits struct {
	File int64 // bytes that one file may have, with its holes; 0: 4 TiB
	Data int64 // bytes that are in the archive, unpacked, and may have to be written; 0: 64 GiB
}

// Errors of archives that callers branch on.
var (
	ErrTooLarge   = errors.New("snapshot file: it is too large")
	errNotArchive = errors.New("it is none of matchlock's")
)

func (l Limits) withDefaults() Limits {
	if l.File == 0 {
		l.File = 4 << 40
	}
	if l.Data == 0 {
		l.Data = 64 << 30
	}
	return l
}

// ExportOptions say what goes beside a machine's files. The zero value is fine.
type ExportOptions struct {
	About any // in the place of what its owner noted, unless nil
	Extra []ExtraFile
}

// Export writes a machine as an archive, and makes sure of its files on the way: after an error what
// was written is of no use, and Import would say so.
func Export(ctx context.Context, dir string, w io.Writer, o ExportOptions) (err error) {
	m, r, err := open(ctx, dir, false)
	if err != nil {
		return err
	}
	defer m.Close()
	files := filesOf(m)
	head := manifest{Kind: archiveKind, Version: archiveVersion, Requires: r.Requires, About: r.About}
	if o.About != nil {
		if head.About, err = json.Marshal(o.About); err != nil {
			return err
		}
	}
	for _, s := range r.Files {
		head.Files = append(head.Files, stored{Name: s.Name, Size: s.Size, Sum: s.Sum})
	}
	for _, extra := range o.Extra {
		f, s, err := openExtra(ctx, extra)
		if err != nil {
			return fmt.Errorf("%s: %w", extra.Name, err)
		}
		defer f.Close()
		files, head.Files = append(files, f), append(head.Files, s)
	}
	if own, err := head.check(Limits{}.withDefaults()); err != nil {
		return err
	} else if own != len(r.Files) {
		return fmt.Errorf("extra file %q has the name of a layer", head.Files[len(r.Files)].Name)
	}
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if len(text) > maxManifest {
		return fmt.Errorf("%s: %d bytes, at most %d are read", manifestName, len(text), maxManifest)
	}
	packed, err := zstd.NewWriter(w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	e := exporter{tar.NewWriter(packed), make([]byte, 0, maxPiece)}
	if err := e.entry(manifestName, text); err != nil {
		return err
	}
	for i, f := range files {
		if err := e.file(ctx, f, head.Files[i]); err != nil {
			return fmt.Errorf("%s: %w", head.Files[i].Name, err)
		}
	}
	return e.tar.Close()
}

func openExtra(ctx context.Context, extra ExtraFile) (*os.File, stored, error) {
	f, err := os.Open(extra.Path)
	if err != nil {
		return nil, stored{}, err
	}
	s := stored{Name: extra.Name}
	info, err := f.Stat()
	if err == nil {
		s.Size = info.Size()
		s.Sum, err = Sum(ctx, f)
	}
	if err != nil {
		f.Close()
		return nil, s, err
	}
	return f, s, nil
}

type exporter struct {
	tar   *tar.Writer
	piece []byte
}

func (e *exporter) entry(name string, content []byte) error {
	// The plainest of the formats, which has room for all there is to say.
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600, Format: tar.FormatUSTAR}
	if err := e.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := e.tar.Write(content)
	return err
}

func (e *exporter) file(ctx context.Context, f *os.File, s stored) error {
	sum, start := newSum(s.Size), int64(0)
	flush := func() error {
		if len(e.piece) == 0 {
			return nil
		}
		err := e.entry(s.Name+"/"+strconv.FormatInt(start, 10), e.piece)
		e.piece = e.piece[:0]
		return err
	}
	err := disk.EachBlock(f, func(offset int64, block []byte) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		sum.block(offset, block)
		if offset != start+int64(len(e.piece)) || len(e.piece)+len(block) > maxPiece {
			if err := flush(); err != nil {
				return err
			}
			start = offset
		}
		e.piece = append(e.piece, block...)
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil && sum.String() != s.Sum {
		err = errors.New("it is damaged")
	}
	return err
}

// Arrival is a machine that has come as an archive, as what sent it says. All of it is to be
// distrusted.
type Arrival struct {
	About    json.RawMessage
	Requires json.RawMessage
	Extra    []ExtraFile // private copies, to be taken away, or else removed
}

// Import is Make of a machine that comes as an archive, which may come from anywhere. When all of it
// is there and its sums are right, settle, unless nil, puts the extra files to use, and returns what
// is to be noted of the machine in the place of what came. After an error nothing is left.
//
// A Read of r that waits is waited for, even if the context ends.
func Import(ctx context.Context, folder, name string, r io.Reader, l Limits, settle func(*Arrival) (about any, err error)) error {
	return build(folder, name, false, func(dir string) (*record, error) {
		im := &importer{ctx: ctx, dir: dir, limits: l.withDefaults()}
		if err := im.receive(r); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return nil, cause // whatever a reader has made of it
			}
			if errors.Is(err, ErrTooLarge) {
				return nil, err
			}
			return nil, fmt.Errorf("snapshot file: %w", err)
		}
		kept := &record{Files: im.manifest.Files[:im.own], Requires: im.manifest.Requires, About: im.manifest.About}
		arrived := &Arrival{About: kept.About, Requires: kept.Requires}
		for _, f := range im.manifest.Files[im.own:] {
			arrived.Extra = append(arrived.Extra, ExtraFile{f.Name, filepath.Join(dir, f.Name)})
		}
		if settle != nil {
			about, err := settle(arrived)
			if err == nil {
				kept.About, err = json.Marshal(about)
			}
			if err != nil {
				return nil, err
			}
		}
		for _, extra := range arrived.Extra {
			if err := os.Remove(extra.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		return kept, nil
	})
}

// importer is one call of Import.
type importer struct {
	ctx      context.Context
	dir      string
	limits   Limits
	manifest manifest
	own      int // files that are the machine's, the first ones

	stream stream
	tar    *tar.Reader
	end    int64 // of the entry that is read, in the stream
	data   int64 // bytes of pieces so far
	piece  []byte
}

func (im *importer) receive(r io.Reader) error {
	packed := bufio.NewReaderSize(&cancelReader{im.ctx, r}, 256<<10)
	format, err := compress.Detect(packed)
	if err != nil {
		return err
	}
	if format != compress.Zstd {
		return errNotArchive
	}
	unpacked, err := format.NewReader(packed)
	if err != nil {
		return err
	}
	defer unpacked.Close()
	return im.receiveTar(unpacked)
}

func (im *importer) receiveTar(r io.Reader) error {
	im.stream.r = r
	im.tar = tar.NewReader(&im.stream)
	if err := im.readManifest(); err != nil {
		return err
	}
	if err := im.readFiles(); err != nil {
		return err
	}
	return im.checkDisk()
}

// next returns the next entry, nil at the end of the stream, which is to be where the tar's is.
func (im *importer) next() (*tar.Header, error) {
	const block, ending = 512, 2 * 512
	im.stream.limit = im.end + ending
	h, err := im.tar.Next()
	if err == io.EOF {
		if im.stream.n != im.end+ending {
			return nil, io.ErrUnexpectedEOF
		}
		im.stream.limit++
		if n, err := io.ReadFull(&im.stream, make([]byte, 1)); n > 0 {
			return nil, errors.New("there is something after its end")
		} else if err != io.EOF {
			return nil, err
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// Others than plain ones would have more to read than can be told here.
	if h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR || h.Size < 0 || h.Size > maxPiece {
		return nil, fmt.Errorf("entry %.64q is none that belongs there", h.Name)
	}
	im.end += block + (h.Size+block-1)/block*block
	im.stream.limit = im.end
	return h, nil
}

func (im *importer) readManifest() error {
	h, err := im.next()
	if err != nil {
		return err
	}
	if h == nil || h.Name != manifestName {
		return errNotArchive
	}
	if h.Size > maxManifest {
		return fmt.Errorf("%s: %d bytes, at most %d are read", manifestName, h.Size, maxManifest)
	}
	text, err := im.content(h)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &im.manifest); err != nil {
		return fmt.Errorf("%s: %w", manifestName, err)
	}
	im.own, err = im.manifest.check(im.limits)
	if err != nil && !errors.Is(err, ErrTooLarge) {
		err = fmt.Errorf("%s: %w", manifestName, err)
	}
	return err
}

// content returns what an entry has, until the next call.
func (im *importer) content(h *tar.Header) ([]byte, error) {
	if im.piece == nil {
		im.piece = make([]byte, maxPiece)
	}
	p := im.piece[:h.Size]
	_, err := io.ReadFull(im.tar, p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

var sumPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{64}$`)
})

// check makes sure that a manifest lists a machine's files, and returns how many are its own.
func (m *manifest) check(l Limits) (own int, err error) {
	switch {
	case m.Kind != archiveKind:
		return 0, errNotArchive
	case m.Version != archiveVersion:
		return 0, fmt.Errorf("version %d, and %d is read", m.Version, archiveVersion)
	case len(m.Files) > maxFiles:
		return 0, fmt.Errorf("%d files, at most %d are read", len(m.Files), maxFiles)
	}
	for own < len(m.Files) && m.Files[own].Name == fileName(own) {
		own++
	}
	if own < len(m.Files) && m.Files[own].Name == filesName {
		own++
	}
	if err := checkFiles(m.Files[:own]); err != nil {
		return 0, err
	}
	seen := make(map[string]bool)
	for i, f := range m.Files {
		switch {
		case i >= own && (!extraName().MatchString(f.Name) || strings.HasPrefix(f.Name, "disk-")):
			return 0, fmt.Errorf("file %.64q is none that belongs there", f.Name)
		case seen[f.Name]:
			return 0, fmt.Errorf("file %q is there twice", f.Name)
		case !sumPattern().MatchString(f.Sum):
			return 0, fmt.Errorf("file %q has no sum", f.Name)
		case f.Size <= 0:
			return 0, fmt.Errorf("file %q has %d bytes", f.Name, f.Size)
		case f.Size > l.File || f.Name == stateName && f.Size > MaxState:
			return 0, fmt.Errorf("%w: file %q has %d bytes", ErrTooLarge, f.Name, f.Size)
		}
		seen[f.Name] = true
	}
	return own, nil
}

// readFiles writes the files, each of which has all its pieces before the next one begins.
func (im *importer) readFiles() error {
	h, err := im.next()
	for i := range im.manifest.Files {
		s := &im.manifest.Files[i]
		if err != nil {
			return err
		}
		if h, err = im.readFile(i, s, h); err != nil && !errors.Is(err, ErrTooLarge) {
			err = fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	if err == nil && h != nil {
		err = fmt.Errorf("entry %.64q is none that belongs there", h.Name)
	}
	return err
}

// readFile writes the i-th file, whose pieces are h and those that follow, and returns the entry
// after them.
func (im *importer) readFile(i int, s *stored, h *tar.Header) (_ *tar.Header, err error) {
	f, err := os.OpenFile(filepath.Join(im.dir, s.Name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(s.Size); err != nil {
		return nil, err
	}
	sum, done := newSum(s.Size), int64(0)
	for h != nil {
		at, ok := strings.CutPrefix(h.Name, s.Name+"/")
		if !ok {
			break
		}
		offset, err := strconv.ParseInt(at, 10, 64)
		switch {
		case err != nil || strconv.FormatInt(offset, 10) != at:
			return nil, fmt.Errorf("a piece at %.32q", at)
		case offset < done || offset%pieceAlign != 0 || h.Size == 0 || offset > s.Size-h.Size || h.Size%pieceAlign != 0 && offset+h.Size != s.Size:
			return nil, fmt.Errorf("%d bytes at %d, in a file of %d, after what was before %d", h.Size, offset, s.Size, done)
		}
		if im.data += h.Size; im.data > im.limits.Data {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, im.limits.Data)
		}
		p, err := im.content(h)
		if err != nil {
			return nil, err
		}
		for offset, block := range disk.Blocks(p, offset) {
			sum.block(offset, block)
		}
		if err := disk.WriteSparse(f, p, offset); err != nil {
			return nil, err
		}
		done = offset + h.Size
		if h, err = im.next(); err != nil {
			return nil, err
		}
	}
	if sum.String() != s.Sum {
		return nil, errors.New("its content is not what its sum says")
	}
	if s.Name != memoryName && s.Name != stateName {
		if err := f.Chmod(0o400); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if i < im.own {
		now, err := identify(im.manifest.Files[i].index(i), f)
		if err != nil {
			return nil, err
		}
		now.Sum = s.Sum
		*s = now
	}
	return h, nil
}

// checkDisk makes sure that the layers of the disk are what they should be: an image, and overlays
// that name no file of this host.
func (im *importer) checkDisk() error {
	size := im.manifest.Files[2].Size
	for _, s := range im.manifest.Files[3:im.own] {
		if s.Name == filesName {
			continue // whose form is its owner's affair
		}
		f, err := os.Open(filepath.Join(im.dir, s.Name))
		if err != nil {
			return err
		}
		err = disk.CheckOverlay(f, size)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// cancelReader ends with its context.
type cancelReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// stream is what is unpacked of an archive, as far as it may be read: it could go on without end.
type stream struct {
	r        io.Reader
	n, limit int64
}

func (s *stream) Read(p []byte) (int, error) {
	if s.n >= s.limit {
		return 0, errors.New("an entry is none that belongs there")
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.limit-s.n)])
	s.n += int64(n)
	return n, err
}
