package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// The guest's /init is part of the program matchlock, which hands it out when
// it is run with this argument: a line that says what follows, then the binary.
const (
	HelperCommand = "__guest"

	helperTimeout  = 10 * time.Second
	maxGuest       = 64 << 20
	maxHelperLine  = 128
	maxHelperError = 4 << 10
)

// helperHeader is the line before a guest binary; Sscanf reads it back.
const helperHeader = "matchlock-guest wire %d bytes %d\n"

// WriteGuest writes a guest binary as the hidden command HelperCommand does.
func WriteGuest(w io.Writer, guest *io.SectionReader) error {
	if guest == nil {
		return noGuest()
	}
	if _, err := fmt.Fprintf(w, helperHeader, wire.Version, guest.Size()); err != nil {
		return err
	}
	_, err := io.Copy(w, io.NewSectionReader(guest, 0, guest.Size()))
	return err
}

func noGuest() error {
	return &hintError{
		fmt.Errorf("%w: this program was built without it", ErrNoHelper),
		"build it with `make build`, or name a finished one in MATCHLOCK_HELPER",
	}
}

// guest returns the guest's /init.
func (o Options) guest(ctx context.Context) (*io.SectionReader, error) {
	if o.Guest != nil {
		return o.Guest, nil
	}
	path, err := o.findHelper()
	if err != nil {
		return nil, err
	}
	guest, err := readHelper(ctx, path)
	if err != nil {
		return nil, &hintError{
			fmt.Errorf("%w: helper %s: %w", ErrNoHelper, path, err),
			"`make build` makes one that fits; MATCHLOCK_HELPER names it",
		}
	}
	return section(guest), nil
}

func section(content []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content)))
}

// findHelper returns the first place that has the program matchlock. One that
// was named must be there.
func (o Options) findHelper() (string, error) {
	if o.Helper != "" {
		return o.Helper, nil
	}
	if path := os.Getenv("MATCHLOCK_HELPER"); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), "matchlock")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 && beside != self {
			return beside, nil
		}
	}
	if path, err := exec.LookPath("matchlock"); err == nil && path != self {
		return path, nil
	}
	if filepath.Base(self) == "matchlock" {
		return "", noGuest()
	}
	return "", &hintError{
		fmt.Errorf("%w: the program matchlock is neither beside %s nor on PATH", ErrNoHelper, self),
		"install matchlock, or name it in MATCHLOCK_HELPER",
	}
}

// readHelper has a helper hand out the guest's /init.
func readHelper(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, HelperCommand)
	// What is named in it must not have the helper ask another helper.
	cmd.Env = []string{}
	cmd.WaitDelay = time.Second
	said := limitedBuffer{limit: maxHelperError}
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, pathless(err)
	}
	guest, readErr := parseHelper(out)
	if readErr != nil {
		cancel() // it may go on writing
	}
	if err := cmd.Wait(); err != nil && readErr == nil || err != nil && said.Len() > 0 {
		return nil, fmt.Errorf("%w: %s", err, wire.Printable(strings.TrimSpace(said.String())))
	}
	return guest, readErr
}

// limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct {
	bytes.Buffer
	limit int // bytes
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.limit-b.Len())])
	return len(p), nil
}

// parseHelper reads what WriteGuest writes.
func parseHelper(r io.Reader) ([]byte, error) {
	in := bufio.NewReaderSize(r, maxHelperLine)
	line, err := in.ReadSlice('\n')
	var version, size int
	if err == nil {
		_, err = fmt.Sscanf(string(line), helperHeader, &version, &size)
	}
	switch {
	case err != nil:
		return nil, errors.New("not a program matchlock of this version: it hands out no guest binary")
	case version != wire.Version:
		return nil, fmt.Errorf("its guest speaks version %d, this program %d", version, wire.Version)
	case size < 1 || size > maxGuest:
		return nil, fmt.Errorf("a guest binary of %d bytes", size)
	}
	guest, err := io.ReadAll(io.LimitReader(in, int64(size)+1))
	if err != nil {
		return nil, err
	}
	if len(guest) != size {
		return nil, fmt.Errorf("a guest binary of %d bytes, %d were promised", len(guest), size)
	}
	return guest, nil
}
