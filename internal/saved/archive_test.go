package saved

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/vm"
)

func exported(t testing.TB, dir string, o ExportOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Export(t.Context(), dir, &b, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// extraFile makes one of some megabytes that are hard to pack.
func extraFile(t testing.TB, name string) ExtraFile {
	t.Helper()
	content := make([]byte, 3<<20+4096)
	for i := range content[:2<<20+123] {
		content[i] = byte(rand.Uint32())
	}
	content[len(content)-1] = 1
	path := filepath.Join(t.TempDir(), "layer.erofs")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return ExtraFile{name, path}
}

func TestArchive(t *testing.T) {
	_, dir := makeTest(t, "one")
	lowers := []ExtraFile{extraFile(t, "lower-0"), extraFile(t, "lower-1")}
	archive := exported(t, dir, ExportOptions{About: about{"elsewhere", 7}, Extra: lowers})
	if most := 2*(2<<20+200) + 64<<10; len(archive) > most {
		t.Errorf("the archive has %d bytes, want at most %d", len(archive), most)
	}
	folder := filepath.Join(t.TempDir(), "saved")
	settled := false
	err := Import(t.Context(), folder, "two", bytes.NewReader(archive), Limits{}, func(a *Arrival) (any, error) {
		settled = true
		if string(a.About) != `{"of":"elsewhere","count":7}` || string(a.Requires) != `{"qemu":"7.2"}` {
			t.Errorf("there came %s, requiring %s", a.About, a.Requires)
		}
		for i, extra := range a.Extra {
			want, err := os.ReadFile(lowers[i].Path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(extra.Path)
			if err != nil || extra.Name != lowers[i].Name || !bytes.Equal(got, want) {
				t.Errorf("extra file %d is %q with %d bytes (%v), want %q with %d", i, extra.Name, len(got), err, lowers[i].Name, len(want))
			}
		}
		return about{"test", 1}, os.Remove(a.Extra[0].Path) // put to use
	})
	if err != nil || !settled {
		t.Fatalf("Import: %v; extra files settled: %v", err, settled)
	}
	two := filepath.Join(folder, "two")
	checkContents(t, folder, "two")
	checkContents(t, two, "disk-0", "disk-1", "memory", recordName, "state")
	checkMachine(t, two)
	if err := Verify(t.Context(), two); err != nil {
		t.Error(err)
	}
	if e, err := Describe[about](two); err != nil || e.Size > 1<<20 {
		t.Errorf("it takes %d bytes (%v): the holes are gone", e.Size, err)
	}
	err = Import(t.Context(), folder, "two", bytes.NewReader(archive), Limits{}, nil)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second of the name: %v", err)
	}
	// From the copy, without all that: the same again.
	if err := Import(t.Context(), folder, "three", bytes.NewReader(exported(t, two, ExportOptions{})), Limits{}, nil); err != nil {
		t.Fatal(err)
	}
	checkMachine(t, filepath.Join(folder, "three"))
}

// TestTarLists has another tool read an archive.
func TestTarLists(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("needs zstd")
	}
	_, dir := makeTest(t, "one")
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, exported(t, dir, ExportOptions{}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "--zstd", "-tf", path).CombinedOutput()
	want := "manifest.json\nmemory/20971520\nstate/0\ndisk-0/4096\ndisk-1/0\ndisk-1/65536\ndisk-1/131072\n"
	if err != nil || string(out) != want {
		t.Errorf("%v\n%s, want\n%s", err, out, want)
	}
}

func TestExportRefuses(t *testing.T) {
	for name, extra := range map[string][]ExtraFile{
		"not there":  {{"lower-0", "/nosuch"}},
		"bad name":   {{"../lower", extraFile(t, "").Path}},
		"disk":       {{"disk-2", extraFile(t, "").Path}},
		"disk later": {{"disk-9", extraFile(t, "").Path}},
		"twice":      {{"lower-0", extraFile(t, "").Path}, {"lower-0", extraFile(t, "").Path}},
	} {
		_, dir := makeTest(t, "one")
		if err := Export(t.Context(), dir, io.Discard, ExportOptions{Extra: extra}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, dir := makeTest(t, "one")
	r, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.Files[0].Sum = strings.Repeat("0", 64)
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Export(t.Context(), dir, io.Discard, ExportOptions{}); err == nil || err.Error() != "memory: it is damaged" {
		t.Errorf("with another sum: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Export(ctx, dir, io.Discard, ExportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// smallMachine is one whose archive is short, its memory of some pages and a bit.
func smallMachine(t testing.TB, pages int64) (dir string) {
	t.Helper()
	m := testMachine(t)
	// An overlay would be large.
	small := &vm.Snapshot{Memory: m.Memory, State: m.State, Disk: m.Disk[:1]}
	if err := errors.Join(m.Memory.Truncate(0), m.Memory.Truncate(pages*4096+100), m.Disk[0].Truncate(diskAt+100)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, pages * 4096} {
		if _, err := m.Memory.WriteAt([]byte(memoryText), at); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(t.TempDir(), "saved")
	if err := Make(t.Context(), folder, "one", small, about{"test", 1}); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "one")
}

// imports imports an archive, makes sure that nothing is left after an error, and removes what came else.
func imports(t testing.TB, folder string, archive []byte, l Limits) error {
	t.Helper()
	err := Import(t.Context(), folder, "one", bytes.NewReader(archive), l, nil)
	dir := filepath.Join(folder, "one")
	if err == nil {
		checkContents(t, folder, "one")
		if err := Verify(t.Context(), dir); err != nil {
			t.Errorf("what came is damaged: %v", err)
		}
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := os.ReadDir(folder); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	return err
}

// TestDamagedArchive cuts an archive off everywhere, and flips each of its bits: what is taken is what
// was sent.
func TestDamagedArchive(t *testing.T) {
	sent := smallMachine(t, 3)
	archive := exported(t, sent, ExportOptions{})
	folder := filepath.Join(t.TempDir(), "saved")
	if err := imports(t, folder, archive, Limits{}); err != nil {
		t.Fatal(err)
	}
	for n := range archive {
		if err := imports(t, folder, archive[:n], Limits{}); err == nil {
			t.Errorf("the first %d of %d bytes were taken", n, len(archive))
		}
	}
	for _, more := range [][]byte{{0}, []byte("more"), packed(t, []byte{0}), packed(t, make([]byte, 10240)), archive} {
		if err := imports(t, folder, slices.Concat(archive, more), Limits{}); err == nil {
			t.Errorf("%d bytes more were taken", len(more))
		}
	}
	before, err := readRecord(sent)
	if err != nil {
		t.Fatal(err)
	}
	for i := range archive {
		flipped := slices.Clone(archive)
		flipped[i] ^= 1 << (i % 8)
		err := Import(t.Context(), folder, "one", bytes.NewReader(flipped), Limits{}, nil)
		if err != nil {
			continue
		}
		after, err := readRecord(filepath.Join(folder, "one"))
		if err != nil {
			t.Fatal(err)
		}
		for j := range before.Files {
			if before.Files[j].Sum != after.Files[j].Sum {
				t.Errorf("with byte %d flipped %s is another", i, before.Files[j].Name)
			}
		}
		if err := Remove(filepath.Join(folder, "one")); err != nil {
			t.Fatal(err)
		}
	}
	checkContents(t, folder)
}

func packed(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

// piece is an entry of a tar; rawTar makes one of them.
type piece struct{ name, data string }

func rawTar(t testing.TB, pieces ...piece) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range pieces {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p.name, Size: int64(len(p.data)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, p.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSum has the sum be what its comment says.
func TestSum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := make([]byte, 3*4096+5)
	copy(content[4096:], "page")
	copy(content[3*4096:], "end")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := sha256.Sum256(slices.Concat(
		[]byte("\x00\x00\x00\x00\x00\x00\x30\x05"),
		[]byte("\x00\x00\x00\x00\x00\x00\x10\x00"), content[4096:2*4096],
		[]byte("\x00\x00\x00\x00\x00\x00\x30\x00"), content[3*4096:],
	))
	if got, err := Sum(t.Context(), f); err != nil || got != hex.EncodeToString(want[:]) {
		t.Errorf("got %s, %v; want %x", got, err, want)
	}
}

// TestHostileArchive has all that could be wrong with an archive whose tar is whole.
func TestHostileArchive(t *testing.T) {
	const page = 4096
	a, b := strings.Repeat("a", page), strings.Repeat("b", page)
	file := func(name string, size int64, data map[int64]string) stored {
		sum := newSum(size)
		for _, at := range slices.Sorted(func(yield func(int64) bool) {
			for at := range data {
				if !yield(at) {
					return
				}
			}
		}) {
			for offset, block := range disk.Blocks([]byte(data[at]), at) {
				sum.block(offset, block)
			}
		}
		return stored{Name: name, Size: size, Sum: sum.String()}
	}
	memory := file("memory", 4*page, map[int64]string{page: a, 2 * page: b})
	state := file("state", 5, map[int64]string{0: "state"})
	image := file("disk-0", 64<<20, map[int64]string{0: b})
	good := manifest{Kind: archiveKind, Version: archiveVersion, Files: []stored{memory, state, image}}
	pieces := []piece{{"memory/4096", a}, {"memory/8192", b}, {"state/0", "state"}, {"disk-0/0", b}}
	with := func(change func(*manifest)) string {
		m := good
		m.Files = slices.Clone(good.Files)
		change(&m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	all := func(head string, p ...piece) []byte {
		return packed(t, rawTar(t, append([]piece{{manifestName, head}}, p...)...))
	}
	files := func(change func([]stored) []stored) string {
		return with(func(m *manifest) { m.Files = change(m.Files) })
	}
	sound := with(func(*manifest) {})
	swapped := func(i int, with ...piece) []piece {
		return slices.Replace(slices.Clone(pieces), i, i+1, with...)
	}
	overlay := func() string {
		f, err := disk.CreateOverlay(filepath.Join(t.TempDir(), "overlay"), 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		content, err := os.ReadFile(filepath.Join(filepath.Dir(f.Name()), "overlay"))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}()
	layered := func(header string) []byte {
		content := header + overlay[len(header):]
		f := file("disk-1", int64(len(content)), map[int64]string{0: content})
		return all(files(func(s []stored) []stored { return append(s, f) }), append(slices.Clone(pieces), piece{"disk-1/0", content})...)
	}
	backed := []byte(overlay[:80])
	backed[15], backed[19] = 1, 5 // where the name of a file is that it lies over, and how long
	data := []byte(overlay[:80])
	data[79] = 4 // that another file has its data
	sparse := func() []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Size: int64(len(sound)), PAXRecords: map[string]string{"comment": "x"}, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, sound)
		w.Close()
		return packed(t, b.Bytes())
	}
	other := func(typeflag byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: typeflag, Name: manifestName, Linkname: "/etc/passwd"}); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return packed(t, b.Bytes())
	}
	var gz bytes.Buffer
	gz.WriteString("\x1f\x8b\x08\x00\x00\x00\x00\x00")

	folder := filepath.Join(t.TempDir(), "saved")
	for name, test := range map[string]struct {
		archive []byte
		limits  Limits
		want    string // in the error; "" is that there is none
	}{
		"sound":               {all(sound, pieces...), Limits{}, ""},
		"sound, in one piece": {all(sound, append([]piece{{"memory/4096", a + b}}, pieces[2:]...)...), Limits{}, ""},
		"zeros written out":   {all(sound, append([]piece{{"memory/0", strings.Repeat("\x00", page) + a + b}}, pieces[2:]...)...), Limits{}, ""},
		"just within limits":  {all(sound, pieces...), Limits{File: 64 << 20, Data: 3*page + 5}, ""},
		"with a layer":        {layered(""), Limits{}, ""},

		"empty":                              {nil, Limits{}, "snapshot file: it is none of matchlock's"},
		"gzip":                               {gz.Bytes(), Limits{}, "snapshot file: it is none of matchlock's"},
		"empty tar":                          {packed(t, rawTar(t)), Limits{}, "snapshot file: it is none of matchlock's"},
		"another tar":                        {packed(t, rawTar(t, piece{"file", "x"})), Limits{}, "snapshot file: it is none of matchlock's"},
		"not a tar":                          {packed(t, []byte(strings.Repeat("x", 2048))), Limits{}, "snapshot file: "},
		"another kind":                       {all(with(func(m *manifest) { m.Kind = "image" }), pieces...), Limits{}, "manifest.json: it is none of matchlock's"},
		"another version":                    {all(with(func(m *manifest) { m.Version = 2 }), pieces...), Limits{}, "manifest.json: version 2, and 1 is read"},
		"manifest no JSON":                   {all("{", pieces...), Limits{}, "manifest.json: unexpected end"},
		"manifest large":                     {all(sound+strings.Repeat(" ", maxManifest), pieces...), Limits{}, "manifest.json: "},
		"manifest deep":                      {all(`{"about":`+strings.Repeat("[", 100_000), pieces...), Limits{}, "manifest.json: "},
		"manifest packed with attributes":    {sparse(), Limits{}, "none that belongs there"},
		"a link":                             {other(tar.TypeSymlink), Limits{}, "none that belongs there"},
		"a folder":                           {other(tar.TypeDir), Limits{}, "none that belongs there"},
		"a device":                           {other(tar.TypeChar), Limits{}, "none that belongs there"},
		"no files":                           {all(files(func([]stored) []stored { return nil })), Limits{}, "0 files"},
		"no disk":                            {all(files(func(s []stored) []stored { return s[:2] }), pieces...), Limits{}, "2 files"},
		"other order":                        {all(files(func(s []stored) []stored { return []stored{s[1], s[0], s[2]} }), pieces...), Limits{}, "0 files"},
		"many files":                         {all(files(func(s []stored) []stored { return append(s, slices.Repeat(s[:1], 64)...) }), pieces...), Limits{}, "67 files, at most 64"},
		"name with a path":                   {all(files(func(s []stored) []stored { return append(s, file("../x", page, nil)) }), pieces...), Limits{}, `file "../x" is none`},
		"name of the record":                 {all(files(func(s []stored) []stored { return append(s, file(recordName, page, nil)) }), pieces...), Limits{}, "is none that belongs"},
		"a layer left out":                   {all(files(func(s []stored) []stored { return append(s, file("disk-2", page, nil)) }), pieces...), Limits{}, "is none that belongs"},
		"twice":                              {all(files(func(s []stored) []stored { return append(s, file("lower-0", page, nil), file("lower-0", page, nil)) }), pieces...), Limits{}, "is there twice"},
		"no sum":                             {all(files(func(s []stored) []stored { s[0].Sum = ""; return s }), pieces...), Limits{}, "has no sum"},
		"size negative":                      {all(files(func(s []stored) []stored { s[0].Size = -1; return s }), pieces...), Limits{}, "has -1 bytes"},
		"size nothing":                       {all(files(func(s []stored) []stored { s[0].Size = 0; return s }), pieces...), Limits{}, "has 0 bytes"},
		"size above 4 TiB":                   {all(files(func(s []stored) []stored { s[0].Size = 4<<40 + 1; return s }), pieces...), Limits{}, "too large"},
		"size above the limit":               {all(sound, pieces...), Limits{File: 64<<20 - 1}, `too large: file "disk-0"`},
		"data above the limit":               {all(sound, pieces...), Limits{Data: 3*page + 4}, "too large: more than 12292 bytes"},
		"a large state":                      {all(files(func(s []stored) []stored { s[1].Size = MaxState + 1; return s }), pieces...), Limits{}, `too large: file "state"`},
		"wrong sum":                          {all(files(func(s []stored) []stored { s[0].Sum = strings.Repeat("0", 64); return s }), pieces...), Limits{}, "snapshot file: memory: its content is not what its sum says"},
		"other content":                      {all(sound, swapped(0, piece{"memory/4096", b})...), Limits{}, "snapshot file: memory: its content"},
		"other state":                        {all(sound, swapped(2, piece{"state/0", "State"})...), Limits{}, "snapshot file: state: its content"},
		"a piece missing":                    {all(sound, swapped(1)...), Limits{}, "memory: its content"},
		"the last one missing":               {all(sound, pieces[:3]...), Limits{}, "disk-0: its content"},
		"a piece elsewhere":                  {all(sound, swapped(1, piece{"memory/12288", b})...), Limits{}, "memory: its content"},
		"pieces swapped":                     {all(sound, pieces[1], pieces[0], pieces[2], pieces[3]), Limits{}, "memory: 4096 bytes at 4096"},
		"a piece twice":                      {all(sound, pieces[0], pieces[0], pieces[1], pieces[2], pieces[3]), Limits{}, "memory: 4096 bytes at 4096"},
		"files swapped":                      {all(sound, pieces[2], pieces[0], pieces[1], pieces[3]), Limits{}, "memory: its content"},
		"a piece too far":                    {all(sound, swapped(1, piece{"memory/16384", b})...), Limits{}, "memory: 4096 bytes at 16384"},
		"a piece over the end":               {all(sound, swapped(1, piece{"memory/12288", a + b})...), Limits{}, "memory: 8192 bytes at 12288"},
		"an offset that wraps":               {all(sound, swapped(1, piece{"memory/" + strconv.FormatInt(1<<63-4096, 10), b})...), Limits{}, "memory: 4096 bytes at"},
		"an offset of 100 digits":            {all(sound, swapped(1, piece{"memory/" + strings.Repeat("9", 80), b})...), Limits{}, "memory: a piece at"},
		"an offset negative":                 {all(sound, swapped(0, piece{"memory/-4096", b})...), Limits{}, "memory: 4096 bytes at -4096"},
		"an offset with a plus":              {all(sound, swapped(0, piece{"memory/+4096", a})...), Limits{}, "memory: a piece at"},
		"an offset in between":               {all(sound, swapped(0, piece{"memory/4097", a})...), Limits{}, "memory: 4096 bytes at 4097"},
		"a piece of nothing":                 {all(sound, swapped(0, piece{"memory/4096", ""})...), Limits{}, "memory: 0 bytes at 4096"},
		"half a block":                       {all(sound, swapped(0, piece{"memory/4096", a[:2048]})...), Limits{}, "memory: 2048 bytes"},
		"a large piece":                      {all(sound, swapped(0, piece{"memory/4096", strings.Repeat("a", maxPiece+page)})...), Limits{}, "none that belongs there"},
		"another file's piece":               {all(sound, append(slices.Clone(pieces), piece{"other/0", a})...), Limits{}, `entry "other/0" is none`},
		"a second manifest":                  {all(sound, append(slices.Clone(pieces), piece{manifestName, sound})...), Limits{}, `entry "manifest.json" is none`},
		"an overlay of a file":               {layered(string(backed)), Limits{}, "disk-1: qcow2: it names a file"},
		"an overlay with its data elsewhere": {layered(string(data)), Limits{}, "disk-1: qcow2: features 0x4"},
		"no overlay":                         {layered("RAW"), Limits{}, "disk-1: qcow2: not in the form"},
	} {
		err := imports(t, folder, test.archive, test.limits)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "snapshot file: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if err != nil && strings.Contains(test.want, "too large") != errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v is ErrTooLarge: %v", name, err, errors.Is(err, ErrTooLarge))
		}
	}
}

// TestEndlessArchive sends what never ends, in few bytes: it is noticed at once.
func TestEndlessArchive(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "saved")
	bomb := func(head []byte, block []byte) io.Reader {
		r, w := io.Pipe()
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := z.Write(head)
			for err == nil {
				_, err = z.Write(block)
			}
			z.Close()
		}()
		t.Cleanup(func() { r.Close() })
		return r
	}
	var attributes bytes.Buffer // a header of attributes, again and again
	w := tar.NewWriter(&attributes)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": strings.Repeat("x", 500)}}); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	whole := rawTar(t)
	for name, r := range map[string]io.Reader{
		"zeros":      bomb(nil, make([]byte, 1<<20)),
		"attributes": bomb(nil, attributes.Bytes()),
		"after it":   bomb(whole, make([]byte, 1<<20)),
	} {
		began := time.Now()
		if err := Import(t.Context(), folder, "one", r, Limits{}, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
	checkContents(t, folder)
}

// TestImportEnds cancels one in the middle, and has one fail at its end.
func TestImportEnds(t *testing.T) {
	archive := exported(t, smallMachine(t, 3), ExportOptions{Extra: []ExtraFile{extraFile(t, "lower-0")}})
	folder := filepath.Join(t.TempDir(), "saved")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("not wanted any more")
	r := io.MultiReader(bytes.NewReader(archive[:len(archive)/2]), readerFunc(func(p []byte) (int, error) {
		cancel(why)
		return copy(p, archive[len(archive)/2:]), nil
	}))
	if err := Import(ctx, folder, "one", r, Limits{}, nil); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	checkContents(t, folder)
	refused := errors.New("refused")
	err := Import(t.Context(), folder, "one", bytes.NewReader(archive), Limits{}, func(a *Arrival) (any, error) { return nil, refused })
	if !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	checkContents(t, folder)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// importEnv has a copy of the test binary import what comes, into the folder it names.
const importEnv = "MATCHLOCK_TEST_SAVED_IMPORT"

func TestMain(m *testing.M) {
	if folder := os.Getenv(importEnv); folder != "" {
		err := Import(context.Background(), folder, "one", os.Stdin, Limits{}, nil)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// TestKilled kills a process in the middle of an import. Nobody takes what it leaves for a machine, and
// it goes.
func TestKilled(t *testing.T) {
	archive := exported(t, smallMachine(t, 3), ExportOptions{Extra: []ExtraFile{extraFile(t, "lower-0")}})
	folder := filepath.Join(t.TempDir(), "saved")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), importEnv+"="+folder)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	// When all but the end has been read, the files are there.
	if _, err := in.Write(archive[:len(archive)-10]); err != nil {
		t.Fatal(err)
	}
	extra := filepath.Join(folder, makingPrefix+"one", "lower-0")
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(extra); err == nil {
			break
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal("the child does not import")
		}
	}
	if err := Import(t.Context(), folder, "one", bytes.NewReader(archive), Limits{}, nil); err != ErrBeingMade {
		t.Errorf("beside the child: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait() // killed, as it should be
	if list, err := List[about](folder); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	if err := RemoveRemains(folder); err != nil {
		t.Error(err)
	}
	checkContents(t, folder)
}

// FuzzImport takes any bytes for the tar in an archive: what is not refused is whole, and has no more
// than it may.
func FuzzImport(f *testing.F) {
	unpack := func(archive []byte) []byte {
		z, err := zstd.NewReader(nil)
		if err != nil {
			f.Fatal(err)
		}
		defer z.Close()
		data, err := z.DecodeAll(archive, nil)
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	whole := unpack(exported(f, smallMachine(f, 0), ExportOptions{}))
	f.Add(whole)
	f.Add(whole[:len(whole)-512])
	f.Add(rawTar(f, piece{manifestName, `{"kind":"matchlock-snapshot","version":1,"files":[]}`}))
	layer := filepath.Join(f.TempDir(), "layer")
	if err := os.WriteFile(layer, []byte("layer"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Add(unpack(exported(f, smallMachine(f, 0), ExportOptions{About: about{"x", 1}, Extra: []ExtraFile{{"lower-0", layer}}})))
	// The making folder and the packing are left out: what they do would look like finds.
	dir := f.TempDir()
	limits := Limits{File: 64 << 20, Data: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := emptyFolder(dir); err != nil {
			t.Fatal(err)
		}
		im := &importer{ctx: context.Background(), dir: dir, limits: limits}
		err := im.receiveTar(bytes.NewReader(seal(data)))
		var room int64
		for _, name := range contents(t, dir) {
			if !slices.ContainsFunc(im.manifest.Files, func(s stored) bool { return s.Name == name }) {
				t.Errorf("it made %q", name)
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			room += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		if room > limits.Data+maxFiles<<12 {
			t.Errorf("it takes %d bytes", room)
		}
		if err != nil {
			return
		}
		for _, s := range im.manifest.Files {
			file, err := os.Open(filepath.Join(dir, s.Name))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if sum, err := Sum(context.Background(), file); err != nil || sum != s.Sum {
				t.Errorf("%s has the sum %s (%v), not %s", s.Name, sum, err, s.Sum)
			}
		}
	})
}

// seal gives the headers of a tar the sums that they would have.
func seal(data []byte) []byte {
	data = slices.Clone(data)
	for at := 0; at+512 <= len(data); {
		h := data[at : at+512]
		if bytes.Count(h, []byte{0}) == 512 {
			break
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		size, err := strconv.ParseInt(strings.Trim(string(h[124:136]), " \x00"), 8, 32)
		if err != nil || size < 0 {
			break
		}
		at += 512 + int(size+511)/512*512
	}
	return data
}
