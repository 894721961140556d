package hostfs

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Replace has write make a file, with mode 0600, that gets the name path when it is whole: whoever opens path has the
// old file or the new one. After an error it is the old one. What a process that is killed leaves lies beside path, and
// its name begins with ".new-". Nothing waits for the disk: a power cut may cut the new file too.
func Replace(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	err = write(f)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name()) // the first error tells more
	}
	return err
}

// MaxRecord bounds the files that ReadRecord reads.
const MaxRecord = 8 << 20

// WriteRecord makes v, as JSON, what the file at path holds.
func WriteRecord(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return Replace(path, func(w io.Writer) error {
		_, err := w.Write(append(data, '\n'))
		return err
	})
}

// ReadRecord reads what WriteRecord wrote. When it fails, as it does for a file of more than MaxRecord bytes, v means nothing.
func ReadRecord(path string, v any) error {
	data, err := ReadLimited(path, MaxRecord)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// ReadLimited reads a file of at most limit bytes; a larger one is an error.
func ReadLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return data, err
}
