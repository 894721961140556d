package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// RecordVersion is the form of state.json that this program writes. It reads
// that and all earlier ones.
const RecordVersion = 1

// recordName is the file in a sandbox's folder that says what is known of it.
const recordName = "state.json"

// Record is what state.json holds: for other processes to read, and for the
// next supervisor to go on from. There is no secret in it.
type Record struct {
	Version int `json:"version"`
	api.Info
	Accel  string `json:"accel,omitempty"`   // that was asked for
	NoJail bool   `json:"no_jail,omitempty"` // likewise
}

// migrations turn a record of version i+1 into one of the next version, in
// place.
var migrations = []func(fields map[string]json.RawMessage) error{}

var errNewer = errors.New("it was written by a newer matchlock")

// decodeRecord reads a record of any version up to this program's.
func decodeRecord(data []byte, migrations []func(map[string]json.RawMessage) error) (Record, error) {
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, err
	}
	current := len(migrations) + 1
	switch {
	case r.Version > current:
		return Record{}, fmt.Errorf("version %d: %w", r.Version, errNewer)
	case r.Version < 1:
		return Record{}, fmt.Errorf("version %d: there is none", r.Version)
	case r.Version == current:
		return r, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return Record{}, err
	}
	for v := r.Version; v < current; v++ {
		if err := migrations[v-1](fields); err != nil {
			return Record{}, fmt.Errorf("version %d: %w", v, err)
		}
	}
	migrated, err := json.Marshal(fields)
	if err != nil {
		return Record{}, err
	}
	r = Record{}
	err = json.Unmarshal(migrated, &r)
	r.Version = current
	return r, err
}

// readRecord reads the record in the folder at path. The sandbox is called what
// its folder is, whatever the file says.
func readRecord(path string) (Record, error) {
	file, err := os.Open(filepath.Join(path, recordName))
	if err != nil {
		return Record{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, hostfs.MaxRecord))
	if err != nil {
		return Record{}, err
	}
	r, err := decodeRecord(data, migrations)
	if err != nil {
		return Record{}, fmt.Errorf("%s: %w", recordName, err)
	}
	r.ID = filepath.Base(path)
	return r, nil
}

func writeRecord(path string, r *Record) error {
	r.Version = RecordVersion
	return hostfs.WriteRecord(filepath.Join(path, recordName), r)
}
