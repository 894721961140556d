//go:build linux

package guest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
)

// layers are the folders of which the user's root is made: what was written to it, and
// all else. They are mounted nowhere any more, and end with this process.
type layers struct{ upper, below *os.File }

// openLayers opens them where the root is made of layers.
func openLayers(root wire.Root) (*layers, error) {
	if len(root.Lowers) == 0 {
		return nil, nil
	}
	dir := lowerDir(0)
	if len(root.Lowers) > 1 {
		dir = belowDir
		if err := (mount{"overlay", dir, "overlay", unix.MS_RDONLY, lowerOption(root)}).do(); err != nil {
			return nil, err
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
	}
	upper, err := os.Open(writtenDir)
	if err != nil {
		return nil, err
	}
	below, err := os.Open(dir)
	return &layers{upper, below}, err
}

// hold has user code stand still for who reads what it has written.
func (g *guest) hold() (release func(), err error) {
	if err := g.stillness.begin(); err != nil {
		return nil, err
	}
	return func() {
		if err := g.stillness.end(); err != nil {
			fatal(err) // it would stand still for ever
		}
	}, nil
}

// noteMounts remembers where the sandbox has something mounted.
func (g *guest) noteMounts(b *api.BootData) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range b.Mounts {
		g.mounts = append(g.mounts, m.Path)
	}
	for _, m := range b.Tmpfs {
		g.mounts = append(g.mounts, m.Path)
	}
	for _, d := range g.params.Disks {
		g.mounts = append(g.mounts, d.Mount)
	}
}

// ours are the places of the root file system that this program has written to.
func (g *guest) ours() map[string]agent.Place {
	places := map[string]agent.Place{}
	add := func(path string, p agent.Place) {
		// User code may have changed where the path leads. Then what was made there is
		// taken for its own.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			places[strings.TrimPrefix(real, "/")] = p
		}
	}
	for _, m := range systemMounts("", g.params.Privileged) {
		add(m.target, agent.Place{})
	}
	for _, path := range identityPlaces {
		add(path, agent.Place{})
	}
	g.mu.Lock()
	mounts := g.mounts
	g.mu.Unlock()
	for _, path := range mounts {
		add(path, agent.Place{})
	}
	for _, path := range append(agent.Bundles(), debianSource+sourceName, fedoraSource+sourceName, hashed) {
		add(path, agent.Place{Clean: g.trust.withoutRooms})
	}
	for _, path := range keystores {
		add(path, agent.Place{Clean: withoutOurs})
	}
	delete(places, "") // the root itself
	return places
}

// withoutRooms returns a bundle without the rooms in it, which were not in the image. It
// has none of the roots that were given to an image without any.
func (t *trust) withoutRooms(content []byte) []byte {
	for {
		at := bytes.Index(content, []byte(roomMark))
		if at < 0 || len(content)-at < roomBytes {
			break
		}
		content = append(content[:at:at], content[at+roomBytes:]...)
	}
	if t != nil && bytes.Equal(bytes.TrimSpace(content), bytes.TrimSpace(t.roots)) {
		return nil
	}
	return content
}

// withoutOurs returns a Java keystore without the certificate that addToKeystore adds.
func withoutOurs(content []byte) []byte {
	count, body, err := keystoreEntries(content)
	if err != nil || count == binary.BigEndian.Uint32(content[8:]) {
		return content
	}
	return keystoreOf(count, body)
}
