package qemu_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/machine"
)

// A file of 100 MB goes in and out unchanged by the calls for files, and one
// that a call holds in memory as a whole does too.
func TestVMFiles(t *testing.T) {
	m := start(t, overlayConfig(t, "files"), nil)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	content := make([]byte, 100e6)
	rand.NewChaCha8([32]byte{2}).Read(content)
	want := sha256.Sum256(content)

	files := agent.NewClient(m.(*machine.Machine).Dial)
	began := time.Now()
	if err := files.Upload(ctx, "/made/on/the/way/file", 0o640, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	t.Logf("in:  %v", time.Since(began))
	if got, _ := sh(t, m, nil, "cd /made/on/the/way && stat -c '%a %s' file && sha256sum file && ls -A | wc -l"); got != fmt.Sprintf("640 100000000\n%x  file\n1", want) {
		t.Errorf("inside: %q", got)
	}
	out := sha256.New()
	began = time.Now()
	info, err := files.Download(ctx, "/made/on/the/way/file", out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("out: %v", time.Since(began))
	if got := hex.EncodeToString(out.Sum(nil)); got != hex.EncodeToString(want[:]) || info.Size != int64(len(content)) {
		t.Errorf("out: %d bytes, %s; want %d, %x", info.Size, got, len(content), want)
	}

	if err := m.WriteFile(ctx, "/small", content[:10e6], 0); err != nil {
		t.Fatal(err)
	}
	if got, err := m.ReadFile(ctx, "/small"); err != nil || !bytes.Equal(got, content[:10e6]) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
	if _, err := m.ReadFile(ctx, "/made/on/the/way/file"); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("100 MB in one piece: %v", err)
	}
}
