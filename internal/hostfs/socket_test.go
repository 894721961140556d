package hostfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	for name, folder := range map[string]string{"short": "s", "long": strings.Repeat("long", 40)} {
		t.Run(name, func(t *testing.T) {
			if name == "long" && runtime.GOOS != "linux" {
				t.Skip("only Linux has a short path to every folder")
			}
			folder := filepath.Join(t.TempDir(), folder)
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(folder, "socket")
			if _, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Dial of nothing = %v", err)
			}
			listener, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			info, err := os.Lstat(path)
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("the socket is %v, %v", info.Mode(), err)
			}
			if _, err := Listen(path); err == nil {
				t.Error("two listen at one path")
			}
			client, err := Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if peer, err := Peer(client); err != nil || peer != (Process{os.Getpid(), os.Geteuid()}) {
				t.Errorf("the listener is %+v, %v", peer, err)
			}
			listener.Close()
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Close the socket is there: %v", err)
			}
			listener.Close() // and takes no socket away that another has made since
		})
	}
}
