package sandbox_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/matchlock/matchlock/api"
)

// TestVMSecretNowhere has a guest use a secret in the ways that it can, with a
// server that sends it back in the ways that it can, and then looks for its value in
// all of the guest: its memory, its disk, the environment of its processes and what
// it was sent. That the search would find it there is shown by a value that the guest
// has.
func TestVMSecretNowhere(t *testing.T) {
	p := newPlace(t)
	const canary = "canary-7Qm2Zx9Lk4Vb8Nw3"
	value := "real-" + hex.EncodeToString([]byte(t.TempDir()))[:20] + "/+=&\"<value>"
	t.Setenv("TOKEN", value)

	var arrived []string // what the server was given
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		got := r.Header.Get("X-Token")
		if _, password, ok := r.BasicAuth(); ok {
			got = password
		}
		if q := r.URL.Query().Get("token"); q != "" {
			got = q
		}
		if len(body) > 0 {
			got = string(body)
		}
		arrived = append(arrived, got)
		w.Header().Set("X-Echo", got)
		w.Header().Set("Trailer", "X-Late")
		echo := func(w io.Writer) {
			quoted, _ := json.Marshal(got)
			fmt.Fprintln(w, "plain", got)
			fmt.Fprintln(w, "json", string(quoted))
			fmt.Fprintln(w, "hex", hex.EncodeToString([]byte(got)), strings.ToUpper(hex.EncodeToString([]byte(got))))
			for _, before := range []string{"", "x", "xy"} {
				fmt.Fprintln(w, "base64", base64.StdEncoding.EncodeToString([]byte(before+got)), base64.URLEncoding.EncodeToString([]byte(before+got)))
			}
			for _, c := range []byte(got) { // in pieces
				w.Write([]byte{c})
				if f, ok := w.(http.Flusher); ok {
					f.Flush()
				}
			}
		}
		if r.URL.Path == "/packed" {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			echo(z)
		} else {
			echo(w)
		}
		w.Header().Set("X-Late", got)
	}))
	defer server.Close()
	port := netip.MustParseAddrPort(server.Listener.Addr().String()).Port()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(server.Certificate().Raw); err != nil {
		t.Fatal(err)
	}

	config := api.Config{Image: p.image(t, "debian-12.tar"), Memory: 256 << 20}
	config.Network.Allow = []api.Rule{{Target: "example.com", First: port, Last: port}} // the name in httptest's certificate
	config.Network.Resolve = []api.HostIPMapping{{Host: "example.com", IP: "127.0.0.1"}}
	config.Network.UpstreamCA = []string{ca}
	config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"example.com"}}}
	config.SecretIn = []api.SecretPlaces{{Name: "TOKEN", Query: true, Body: true}}
	p.options.Keep = true // so that its folder can be looked at
	sb := p.start(t, config)
	script := fmt.Sprintf(`set -e
url=https://example.com:%d
export CANARY=%s
sleep 1000 &
cd /root
echo $CANARY >canary
curl -sSi -H "X-Token: $TOKEN" $url/header
curl -sSi --http1.1 -u "user:$TOKEN" $url/basic
curl -sSi --compressed -H "X-Token: $TOKEN" $url/packed
curl -sSi "$url/query?token=$TOKEN"
curl -sSi -d "$TOKEN" -H 'Content-Type: text/plain' $url/body
cat /proc/[0-9]*/environ | tr '\0' '\n'
sync`, port, canary)
	out, err := sb.Command(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(arrived) != 5 {
		t.Fatalf("%d requests arrived, want 5: %s", len(arrived), out)
	}
	for i, got := range arrived {
		if got != value {
			t.Errorf("request %d arrived with %q, want the value", i, got)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "out"), out, 0o600); err != nil {
		t.Fatal(err)
	}

	info, err := p.options.Inspect(t.Context(), sb.ID())
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]func(look func([]byte)) error{
		"what the guest was sent and its environment": func(look func([]byte)) error { look(out); return nil },
		"the guest's memory": func(look func([]byte)) error {
			return readMachine(info.MachinePID, config.Memory, look)
		},
		"its folder": func(look func([]byte)) error { return readFolder(info.Folder, look) },
	}
	for where, read := range places {
		for _, sought := range []struct {
			text   string
			wanted bool
		}{{value, false}, {canary, true}} {
			found := ""
			forms := formsOf(sought.text)
			err := read(func(content []byte) {
				for form, bytesOf := range forms {
					if bytes.Contains(content, bytesOf) {
						found = form
					}
				}
			})
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if (found != "") != sought.wanted {
				t.Errorf("%s: %.6s… was found %q, wanted there: %v", where, sought.text, found, sought.wanted)
			}
		}
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
	if err := p.options.Remove(context.Background(), sb.ID(), true); err != nil {
		t.Error(err)
	}
}

// formsOf are the ways in which a text may stand in memory.
func formsOf(text string) map[string][]byte {
	forms := map[string][]byte{
		"plain": []byte(text),
		"hex":   []byte(hex.EncodeToString([]byte(text))),
		"HEX":   []byte(strings.ToUpper(hex.EncodeToString([]byte(text)))),
	}
	for i, before := range []string{"", "x", "xy"} {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.URLEncoding} {
			encoded := encoding.EncodeToString([]byte(before + text))
			forms[name+strconv.Itoa(i)] = []byte(encoded[4 : len(encoded)-4]) // what the neighbours have no part in
		}
	}
	var wide []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		wide = append(wide, byte(unit), byte(unit>>8))
	}
	forms["UTF-16"] = wide
	return forms
}

// readMachine reads the memory of a guest, as its hypervisor's process has it.
func readMachine(pid int, size int64, look func([]byte)) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	read := int64(0)
	buffer := make([]byte, 4<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil || to-from < 16<<20 || !strings.Contains(line, " rw") {
			continue
		}
		const overlap = 4096
		for at := from; at < to; at += int64(len(buffer)) - overlap {
			n, err := memory.ReadAt(buffer[:min(int64(len(buffer)), to-at)], at)
			if err != nil && n == 0 {
				break // not memory
			}
			look(buffer[:n])
			read += int64(n)
		}
	}
	if read < size {
		return fmt.Errorf("%d bytes of memory were found, the guest has %d", read, size)
	}
	return nil
}

// readFolder reads all files of a folder.
func readFolder(dir string, look func([]byte)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		// The disk is sparse, and reads as zeros for the most part.
		buffer := make([]byte, 4<<20)
		for at := int64(0); ; at += int64(len(buffer)) - 4096 {
			n, err := f.ReadAt(buffer, at)
			look(buffer[:n])
			if err != nil {
				break
			}
		}
		f.Close()
	}
	return nil
}
