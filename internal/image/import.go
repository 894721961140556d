package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/matchlock/matchlock/internal/compress"
)

// ImportOptions say how an archive becomes an image. The zero value is fine.
type ImportOptions struct {
	// Changes to the configuration, each as a line of a Dockerfile: CMD, ENTRYPOINT, ENV, USER or WORKDIR. A root file
	// system has no configuration of its own: it gets CMD ["/bin/sh"].
	Changes []string
	// Platform to choose of an archive with several, "linux/arm64"; empty: this host's. A root file system is taken for
	// what is asked for.
	Platform string
	MaxBytes int64 // that the image may unpack to; 0: DefaultMaxBytes
	Progress Progress
}

// Import makes an image of an archive and gives it the name, taking it from the image that had it. What the archive is,
// is told by its content:
//
//   - A tar with a top folder that only root file systems have (bin, etc, usr …) is a root file system.
//   - Else, with oci-layout and index.json at its top, it is an OCI image layout.
//   - Else, with a manifest.json at its top that lists configurations and layers, it was made by docker save.
//   - Else it is a root file system.
//
// Each may be packed with gzip, zstd, xz or bzip2. Of an archive with several images the one is taken that has
// the name. The image is checked as a pulled one is; a layout's digests stay what they were.
//
// A root file system is unpacked as it arrives. The others are copied first if r is not a regular file, since their
// parts come in any order. A Read of r that waits is waited for, even if the context ends.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, o ImportOptions) (*Image, error) {
	return s.imported(name, o, func(im *importer) (*Image, error) { return im.stream(ctx, r) })
}

// ImportPath is Import from a file, or from the folder of an OCI image layout.
func (s *Store) ImportPath(ctx context.Context, name, path string, o ImportOptions) (*Image, error) {
	return s.imported(name, o, func(im *importer) (*Image, error) {
		if info, err := os.Stat(path); err != nil {
			return nil, err
		} else if !info.IsDir() {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return im.stream(ctx, f)
		}
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		if !isLayout(folder{root}) {
			return nil, fmt.Errorf("%s: a folder, but no OCI image layout", path)
		}
		return im.layout(ctx, folder{root})
	})
}

// importer is one call of Import.
type importer struct {
	*intake
	platform v1.Platform
	changes  []change
}

func (s *Store) imported(name string, o ImportOptions, run func(*importer) (*Image, error)) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	changes, err := parseChanges(o.Changes)
	if err != nil {
		return nil, err
	}
	w, err := s.begin()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer w.end()
	image, err := run(&importer{w.intake(name, o.MaxBytes, o.Progress), platform, changes})
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	return image, nil
}

// headSize is how much of an archive is looked at before it is decided how to go on.
const headSize = 256 << 10

// stream imports what is not a folder.
func (im *importer) stream(ctx context.Context, r io.Reader) (*Image, error) {
	if file, ok := plainTar(r); ok {
		return im.file(ctx, file)
	}
	in := &meter{ctx: ctx, r: r, limit: im.maxBytes, over: im.tooLarge(), event: Event{Layer: "archive", State: Reading, Total: -1}}
	packed := bufio.NewReaderSize(in, headSize)
	format, err := compress.Detect(packed)
	if err != nil {
		return nil, err
	}
	if format == compress.XZ || format == compress.Bzip2 { // layers are not packed so
		tar, err := format.NewReader(packed)
		if err != nil {
			return nil, err
		}
		format, packed = compress.Plain, bufio.NewReaderSize(tar, headSize)
	}
	head, err := packed.Peek(headSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if isRootFS(head, format) {
		return im.rootFS(ctx, packed)
	}
	in.report = im.report // what comes after has its own reports
	file, err := im.spool(packed, format)
	if err != nil {
		return nil, err
	}
	im.report(Event{Layer: in.event.Layer, State: Ready, Done: in.event.Done, Total: in.event.Done})
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	return im.file(ctx, io.NewSectionReader(file, 0, size))
}

// plainTar returns the rest of a regular file that is not packed.
func plainTar(r io.Reader) (*io.SectionReader, bool) {
	file, ok := r.(*os.File)
	if !ok {
		return nil, false
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, false
	}
	offset, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, false
	}
	section := io.NewSectionReader(file, offset, max(0, info.Size()-offset))
	format, err := compress.Detect(bufio.NewReader(io.NewSectionReader(section, 0, 512)))
	return section, err == nil && format == compress.Plain
}

// isRootFS reports whether the first bytes of an archive tell already that it is a root file system.
func isRootFS(head []byte, format compress.Format) bool {
	tar, err := format.NewReader(bytes.NewReader(head))
	if err != nil {
		return false
	}
	defer tar.Close()
	_, rootfs, _ := scan(io.LimitReader(tar, 16*headSize)) // it breaks off where the head does
	return rootfs
}

// spool writes an unpacked archive to a file without a final name.
func (im *importer) spool(packed io.Reader, format compress.Format) (*os.File, error) {
	tar, err := format.NewReader(packed)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	file, err := im.create("archive-")
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(file, io.LimitReader(tar, im.maxBytes+1))
	if err == nil && n > im.maxBytes {
		err = im.tooLarge()
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// file imports a tar that can be read at any place.
func (im *importer) file(ctx context.Context, file *io.SectionReader) (*Image, error) {
	entries, rootfs, err := scan(io.NewSectionReader(file, 0, file.Size()))
	if err != nil {
		return nil, fmt.Errorf("not a complete tar: %w", err)
	}
	a := &archive{file, entries}
	images, saved := savedImages(a)
	switch {
	case rootfs:
		return im.rootFS(ctx, file)
	case isLayout(a) && a.has("index.json"):
		return im.layout(ctx, a)
	case saved:
		return im.docker(ctx, a, images)
	case a.has("repositories"):
		return nil, errors.New("made by a docker save of before 1.10, which has no manifest.json")
	case len(entries) == 0:
		return nil, errors.New("the archive has no files")
	}
	return im.rootFS(ctx, file)
}

// rootFS imports a root file system, packed or not.
func (im *importer) rootFS(ctx context.Context, r io.Reader) (*Image, error) {
	root := part{name: "root file system", what: "root file system", desc: v1.Descriptor{Size: -1}}
	if file, ok := r.(*io.SectionReader); ok {
		root.desc.Size = file.Size()
	}
	root.open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(r), nil }
	return im.takeLoose(ctx, []part{root}, func(diffIDs []v1.Hash) ([]byte, error) {
		config := v1.ConfigFile{
			OS:           im.platform.OS,
			Architecture: im.platform.Architecture,
			Variant:      im.platform.Variant,
			Config:       v1.Config{Cmd: []string{"/bin/sh"}},
			RootFS:       v1.RootFS{Type: "layers", DiffIDs: diffIDs},
			History:      []v1.History{{CreatedBy: "matchlock image import"}},
		}
		applyChanges(&config.Config, im.changes)
		return json.Marshal(config)
	})
}

// docker imports what docker save wrote.
func (im *importer) docker(ctx context.Context, m members, images []dockerSave) (*Image, error) {
	saved, err := pick(images, im.name, func(i dockerSave) string { return i.Config }, func(i dockerSave) []string { return i.RepoTags })
	if err != nil {
		return nil, err
	}
	if len(saved.Layers) > maxImageLayers {
		return nil, fmt.Errorf("%d layers, at most %d are read", len(saved.Layers), maxImageLayers)
	}
	data, err := readMember(m, rooted(saved.Config), maxConfigBytes)
	if err != nil {
		return nil, err
	}
	diffIDs, err := im.checkConfig(data, len(saved.Layers))
	if err != nil {
		return nil, err
	}
	var parts []part
	for i, layer := range saved.Layers {
		p := part{name: layer, what: "layer " + layer, desc: v1.Descriptor{Size: -1}, diffID: diffIDs[i]}
		file, size, err := m.open(rooted(layer))
		if err != nil {
			return nil, err
		}
		file.Close()
		p.desc.Size = size
		p.open = func(context.Context) (io.ReadCloser, error) {
			file, _, err := m.open(rooted(layer))
			return file, err
		}
		parts = append(parts, p)
	}
	return im.takeLoose(ctx, parts, func([]v1.Hash) ([]byte, error) { return changedConfig(data, im.changes) })
}

// layout imports an OCI image layout.
func (im *importer) layout(ctx context.Context, m members) (*Image, error) {
	data, err := readMember(m, "index.json", maxManifestBytes)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(data)
	if err != nil {
		return nil, err
	}
	if doc.index == nil {
		return nil, errors.New("index.json: no index of images")
	}
	images := slices.DeleteFunc(doc.index.Manifests, isAttestation)
	desc, err := pick(images, im.name, func(d v1.Descriptor) string { return d.Digest.String() }, descriptorNames)
	if err != nil {
		return nil, err
	}
	blob := func(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) { return readBlob(m, d, limit) }
	p := published{open: func(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		file, _, err := m.open(blobName(d.Digest))
		return file, err
	}}
	p.manifest, err = blob(ctx, desc, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	manifest, err := resolve(ctx, &p, im.platform, blob)
	if err != nil {
		return nil, err
	}
	if len(im.changes) > 0 {
		if p.config, err = changedConfig(p.config, im.changes); err != nil {
			return nil, err
		}
		manifest.Config = descriptorOf(p.config, manifest.Config.MediaType)
		if p.manifest, err = json.Marshal(manifest); err != nil {
			return nil, err
		}
	}
	return im.takePublished(ctx, p)
}

// checkConfig reads a configuration and makes sure that it is for the platform asked for.
func (im *importer) checkConfig(data []byte, layers int) ([]v1.Hash, error) {
	config, diffIDs, err := parseConfig(data, layers)
	if err != nil {
		return nil, err
	}
	return diffIDs, checkPlatform(config, im.platform)
}

func descriptorNames(d v1.Descriptor) []string {
	var names []string
	for _, key := range []string{nameAnnotation, "io.containerd.image.name"} {
		if name := d.Annotations[key]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// pick chooses the image of an archive: the only one, or the one that has the name already.
func pick[T any](images []T, name string, id func(T) string, names func(T) []string) (T, error) {
	var none T
	if len(images) == 0 {
		return none, errors.New("the archive has no images")
	}
	full, _ := Expand(name)
	var all []string
	several := false
	for _, image := range images {
		several = several || id(image) != id(images[0])
		for _, has := range names(image) {
			if expanded, err := Expand(has); has == name || err == nil && expanded == full {
				return image, nil
			}
			all = append(all, has)
		}
	}
	if several {
		return none, fmt.Errorf("the archive has several images, and none of that name: %s", strings.Join(all, ", "))
	}
	return images[0], nil
}

func blobName(digest v1.Hash) string { return "blobs/sha256/" + digest.Hex }

// readBlob reads a small blob of a layout and checks it.
func readBlob(m members, d v1.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	data, err := readMember(m, blobName(d.Digest), min(limit, d.Size))
	if err != nil {
		return nil, err
	}
	return data, checkBlob(data, d.Digest)
}

func checkBlob(data []byte, want v1.Hash) error {
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want.Hex {
		return fmt.Errorf("blob %s: its content is sha256:%x", want, sum)
	}
	return nil
}
