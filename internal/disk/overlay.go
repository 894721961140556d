package disk

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// The qcow2 format, docs/interop/qcow2.txt in QEMU's source. Numbers are big-endian.
const (
	qcow2Magic        = 0x514649fb
	qcow2ClusterBits  = 16
	qcow2Cluster      = 1 << qcow2ClusterBits
	qcow2HeaderBytes  = 104
	qcow2MappedPerL1  = qcow2Cluster / 8 * qcow2Cluster // bytes of the disk for one entry of the first table
	qcow2RefcountBits = 4                               // as a power of two: 16 bits
)

// OverlayError tells that a file is no overlay that can be trusted.
type OverlayError struct{ Fault string }

func (e *OverlayError) Error() string { return "qcow2: " + e.Fault }

// CheckOverlay makes sure that f is an overlay of a disk of size bytes which asks for no other file: qcow2 can name one that it lies over, or
// that has its data, and who wrote to this one may have chosen which. The error is an *OverlayError for what is wrong with it.
func CheckOverlay(f *os.File, size int64) error {
	header := make([]byte, qcow2HeaderBytes)
	if _, err := f.ReadAt(header, 0); err == io.EOF {
		return &OverlayError{"the file is too short"}
	} else if err != nil {
		return err
	}
	be := binary.BigEndian
	switch {
	case be.Uint32(header[0:]) != qcow2Magic || be.Uint32(header[4:]) != 3 || be.Uint32(header[20:]) != qcow2ClusterBits || be.Uint32(header[100:]) < qcow2HeaderBytes:
		return &OverlayError{"not in the form that is made here"}
	case be.Uint64(header[8:]) != 0 && be.Uint32(header[16:]) != 0: // where its name is, and how long; QEMU leaves a place for none
		return &OverlayError{"it names a file that it lies over"}
	case be.Uint64(header[24:]) != uint64(size):
		return &OverlayError{fmt.Sprintf("it is of a disk of %d bytes, not of %d", be.Uint64(header[24:]), size)}
	case be.Uint32(header[32:]) != 0:
		return &OverlayError{"it is encrypted"}
	case be.Uint64(header[72:]) != 0:
		// Among the incompatible features are that it is damaged and that its data is in another file.
		return &OverlayError{fmt.Sprintf("features %#x", be.Uint64(header[72:]))}
	}
	return nil
}

// MaxOverlay is the largest disk that CreateOverlay makes, 4 TiB: one for which a cluster holds the first table.
const MaxOverlay = qcow2Cluster / 8 * qcow2MappedPerL1

// CreateOverlay makes path, which must not exist, a qcow2 file that holds nothing yet of a disk of size bytes. It does not say what it lies
// over: whoever opens it does. The file appears when it is complete, open for reading and writing.
func CreateOverlay(path string, size int64) (_ *os.File, err error) {
	if size <= 0 || size > MaxOverlay {
		return nil, fmt.Errorf("overlay of %d bytes: not from 1 to %d", size, int64(MaxOverlay))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".overlay-")
	if err != nil {
		return nil, err
	}
	defer func() {
		os.Remove(f.Name())
		if err != nil {
			f.Close()
		}
	}()
	// One cluster each for the header, the table of refcounts, a block of refcounts, the first table.
	const refcounts, refcountBlock, l1, clusters = 1, 2, 3, 4
	content := make([]byte, refcountBlock*qcow2Cluster+2*clusters)
	header, be := content[:qcow2HeaderBytes], binary.BigEndian
	be.PutUint32(header[0:], qcow2Magic)
	be.PutUint32(header[4:], 3) // version
	be.PutUint32(header[20:], qcow2ClusterBits)
	be.PutUint64(header[24:], uint64(size))
	be.PutUint32(header[36:], uint32((size+qcow2MappedPerL1-1)/qcow2MappedPerL1))
	be.PutUint64(header[40:], l1*qcow2Cluster)
	be.PutUint64(header[48:], refcounts*qcow2Cluster)
	be.PutUint32(header[56:], 1) // clusters of the table of refcounts
	be.PutUint32(header[96:], qcow2RefcountBits)
	be.PutUint32(header[100:], qcow2HeaderBytes)
	be.PutUint64(content[refcounts*qcow2Cluster:], refcountBlock*qcow2Cluster)
	for i := range clusters {
		be.PutUint16(content[refcountBlock*qcow2Cluster+2*i:], 1)
	}
	if _, err := f.Write(content); err != nil {
		return nil, err
	}
	if err := f.Truncate(clusters * qcow2Cluster); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), path); err != nil { // of what is there already too
		return nil, err
	}
	return f, nil
}
