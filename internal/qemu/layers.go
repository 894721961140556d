package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/matchlock/matchlock/internal/disk"
)

// A diskLayer is one file of a disk. Most disks have one, a raw image. The one
// that takes the root's writes gets another on top with each snapshot: what is
// below is frozen, and shared with those who begin from the snapshot. The files
// above the raw image are qcow2. They do not say what they lie over; their names
// do, the image's with a number that grows: upper.ext4, upper.ext4.1 and so on.
type diskLayer struct {
	path string
	file *os.File
	node string // what the process that runs calls it
}

// layerPath is the path of the n-th layer over the image at path.
func layerPath(path string, n int) string { return path + "." + strconv.Itoa(n) }

// layerNumber is n of a layerPath, 0 of the image's own.
func layerNumber(image, path string) (n int, ok bool) {
	suffix, ok := strings.CutPrefix(path, image)
	if !ok || suffix == "" {
		return 0, ok
	}
	n, err := strconv.Atoi(strings.TrimPrefix(suffix, "."))
	return n, err == nil && n > 0 && layerPath(image, n) == path
}

// LayerPaths returns the files of the disk whose image is at path, the lowest
// first. It does not look whether the image is there.
func LayerPaths(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	numbers := []int{0}
	for _, entry := range entries {
		if n, ok := layerNumber(path, filepath.Join(filepath.Dir(path), entry.Name())); ok && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	paths := []string{path}
	for _, n := range numbers[1:] {
		paths = append(paths, layerPath(path, n))
	}
	return paths, nil
}

// openLayers opens the files of a disk that is written to.
func openLayers(path string) (layers []diskLayer, err error) {
	paths, err := LayerPaths(path)
	if err != nil {
		return nil, err
	}
	for i, path := range paths {
		file, err := openImage(path, i < len(paths)-1)
		if err == nil {
			layers = append(layers, diskLayer{path: path, file: file})
			err = checkLayer(layers, i)
		}
		if err != nil {
			closeLayers(layers)
			return nil, err
		}
	}
	return layers, nil
}

// checkLayer looks at the i-th layer, whose guest may have had QEMU write anything.
func checkLayer(layers []diskLayer, i int) error {
	if i == 0 {
		return nil
	}
	info, err := layers[0].file.Stat()
	if err != nil {
		return err
	}
	if err := disk.CheckOverlay(layers[i].file, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", layers[i].path, err)
	}
	return nil
}

func closeLayers(layers []diskLayer) error {
	var errs []error
	for _, l := range layers {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}

// addLayer makes an empty layer above others. The image, the lowest, says how
// large the disk is.
func addLayer(layers []diskLayer) (diskLayer, error) {
	image, top := layers[0], layers[len(layers)-1]
	info, err := image.file.Stat()
	if err != nil {
		return diskLayer{}, err
	}
	n, ok := layerNumber(image.path, top.path)
	if !ok {
		return diskLayer{}, fmt.Errorf("%s: no layer of %s", top.path, image.path)
	}
	path := layerPath(image.path, n+1)
	file, err := disk.CreateOverlay(path, info.Size())
	return diskLayer{path: path, file: file}, err
}

// adoptLayers puts the files of a snapshot's disk where those of a machine's own
// are, with an empty one on top. They stay the same files if they can.
func adoptLayers(path string, files []*os.File) error {
	if len(files) == 0 {
		return errors.New("a snapshot without a disk")
	}
	for i, file := range files {
		to := path
		if i > 0 {
			to = layerPath(path, i)
		}
		if err := disk.Adopt(to, file); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	info, err := files[0].Stat()
	if err != nil {
		return err
	}
	top, err := disk.CreateOverlay(layerPath(path, len(files)), info.Size())
	if err != nil {
		return err
	}
	return top.Close()
}
