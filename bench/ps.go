package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/matchlock/matchlock/sandbox"
)

// manySandboxes is how many there are to list.
const manySandboxes = 200

// ps measures how long it takes to list many sandboxes that were kept, beside
// a look at the same files that knows nothing of them.
func ps(ctx context.Context, p *place, m *meter) (err error) {
	const name = "bench-kept"
	folders := filepath.Join(p.dir, "home", "state", "sandboxes")
	defer func() {
		_, e := sandbox.Options{}.Prune(context.WithoutCancel(ctx), nil)
		err = errors.Join(err, e)
	}()
	if err := run(ctx, p.matchlock, "run", "--rm=false", "--name", name, "busybox", "true"); err != nil {
		return err
	}
	kept, err := sandbox.Options{}.Find(ctx, name)
	if err != nil {
		return err
	}
	for n := 1; n < manySandboxes; n++ {
		if err := copyStopped(filepath.Join(folders, kept.ID), filepath.Join(folders, fmt.Sprintf("bench%07d", n))); err != nil {
			return err
		}
	}
	list, err := sandbox.Options{}.List(ctx)
	if err != nil {
		return err
	}
	if len(list) != manySandboxes {
		return fmt.Errorf("there are %d sandboxes, want %d", len(list), manySandboxes)
	}
	for m.loop() {
		if err := m.time(0, func() error { return run(ctx, p.matchlock, "ps", "-a") }); err != nil {
			return err
		}
		if err := m.time(1, func() error { return run(ctx, "ls", "-lR", folders) }); err != nil {
			return err
		}
	}
	return nil
}

// copyStopped makes the folder of a stopped sandbox from another's. What is not
// read when sandboxes are listed is the same file.
func copyStopped(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, file := range files {
		source, target := filepath.Join(from, file.Name()), filepath.Join(to, file.Name())
		switch file.Name() {
		case "lock":
			err = os.WriteFile(target, nil, 0o600)
		case "state.json":
			err = copyRecord(source, target, filepath.Base(to))
		default:
			err = os.Link(source, target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyRecord copies what is known of a sandbox for one of another id and name.
func copyRecord(from, to, id string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var record map[string]json.RawMessage
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	quoted := []byte(`"` + id + `"`)
	record["id"], record["name"] = quoted, quoted
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("", "\t")
	if err := encoder.Encode(record); err != nil {
		return err
	}
	return os.WriteFile(to, out.Bytes(), 0o600)
}
