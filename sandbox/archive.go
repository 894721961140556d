package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/internal/workspace"
)

// sentRecord is what goes with a snapshot to another host beside its files: what is
// known of it, and the configuration of its image, whose layers go too.
type sentRecord struct {
	Sandbox savedRecord  `json:"sandbox"`
	Image   image.Config `json:"image"`
}

// send makes what goes with a snapshot. What ImportSnapshot would not take stays here: a
// proxy's password, commands that print keys, paths of this host, and the CA's key, by
// which one can pose as any server to the sandboxes here.
func send(r savedRecord, c image.Config) sentRecord {
	r.disarm()
	return sentRecord{r, c}
}

// ExportSnapshot writes a snapshot, and the layers of its image, as one file, packed
// and with sums, which ImportSnapshot reads on another host. What was in the
// sandbox's memory is in it, keys and environment too.
func (o Options) ExportSnapshot(ctx context.Context, name string, w io.Writer) error {
	home, err := o.home()
	if err != nil {
		return err
	}
	s, err := o.OpenSnapshot(ctx, name)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.record.detachDisks(ctx, home); err != nil {
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	img, err := o.image(ctx, home, &api.Config{Image: s.record.ImageDigest, Pull: api.PullNever})
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	defer img.Release()
	options := saved.ExportOptions{About: send(s.record, img.Config)}
	for i, layer := range img.Layers {
		options.Extra = append(options.Extra, saved.ExtraFile{Name: lowerName(i), Path: layer.Path})
	}
	if err := saved.Export(ctx, snapshotPath(home, name), w, options); err != nil {
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	return nil
}

// detachDisks has a record say of its disks what was in them, not which they are.
func (r *savedRecord) detachDisks(ctx context.Context, home state.Home) error {
	disks := userDisks(home, &r.Config)
	for i, mark := range r.Disks {
		d := disks[i]
		d.readOnly = true // here
		file, err := d.lock(ctx, home, "")
		if err != nil {
			return fmt.Errorf("%s: %w", d, pathless(err))
		}
		err = mark.check(ctx, file)
		if err == nil && mark.Sum == "" {
			mark.Sum, err = saved.Sum(ctx, file)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		r.Disks[i] = diskMark{Mount: mark.Mount, ReadOnly: mark.ReadOnly, Size: mark.Size, Sum: mark.Sum}
	}
	r.Config.Disks, r.Config.Mounts = nil, withoutVolumes(r.Config.Mounts)
	return nil
}

// lowerName is what the i-th layer of an image is called in an archive.
func lowerName(i int) string { return fmt.Sprintf("lower-%d", i) }

// ImportSnapshot makes a snapshot of what ExportSnapshot has written, maybe
// elsewhere. Nothing of it is used before all of it is there and its sums are right.
// They do not say who made it: what goes on from it runs with what is in its memory,
// and QEMU reads a state that came with it.
func (o Options) ImportSnapshot(ctx context.Context, name string, r io.Reader) (api.Snapshot, error) {
	home, err := o.home()
	if err != nil {
		return api.Snapshot{}, err
	}
	if err := checkFree(home, name); err != nil {
		return api.Snapshot{}, err
	}
	store, err := image.Open(home.Images())
	if err != nil {
		return api.Snapshot{}, err
	}
	var img *image.Image
	err = saved.Import(ctx, home.Snapshots(), name, r, saved.Limits{}, func(a *saved.Arrival) (any, error) {
		sent, err := decodeSent(a)
		if err != nil {
			return nil, fmt.Errorf("snapshot file: %w", err)
		}
		var paths []string
		for _, f := range a.Extra {
			paths = append(paths, f.Path)
		}
		if img, err = store.ImportLayers(ctx, sent.Image, paths, 0); err != nil {
			return nil, fmt.Errorf("snapshot file: %w", err)
		}
		record := sent.Sandbox
		record.disarm()
		record.ImageDigest, record.Imported, record.Snapshot, record.Requires = img.Digest, true, "", nil
		return record, nil
	})
	if img != nil {
		defer img.Release() // from now on the snapshot needs it
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, saved.ErrBeingMade) {
		err = snapshotTaken(name)
	}
	if err != nil {
		return api.Snapshot{}, err
	}
	return o.FindSnapshot(name)
}

// decodeSent reads what came with a snapshot's files, and believes none of it.
func decodeSent(a *saved.Arrival) (*sentRecord, error) {
	decoder := json.NewDecoder(bytes.NewReader(a.About))
	decoder.DisallowUnknownFields()
	var sent sentRecord
	if err := decoder.Decode(&sent); err != nil {
		return nil, err
	}
	r := &sent.Sandbox
	if err := errors.Join(state.CheckName(r.Name), state.CheckName(r.ID), r.Config.Validate()); err != nil {
		return nil, err
	}
	if len(userDisks(state.Home{}, &r.Config)) > 0 {
		return nil, errors.New("it asks for disks of this host")
	}
	if err := errors.Join(checkMarks(r.Disks), checkPlaces(r.Places)); err != nil {
		return nil, err
	}
	for i, f := range a.Extra {
		if f.Name != lowerName(i) {
			return nil, fmt.Errorf("file %q in the place of %q", f.Name, lowerName(i))
		}
	}
	return &sent, nil
}

// checkMarks makes sure that marks of disks are what detachDisks makes.
func checkMarks(marks []diskMark) error {
	if len(marks) > wire.MaxDisks {
		return fmt.Errorf("%d disks", len(marks))
	}
	for i, m := range marks {
		if _, err := hex.DecodeString(m.Sum); err != nil || len(m.Sum) != sha256.Size*2 || m != (diskMark{Mount: m.Mount, ReadOnly: m.ReadOnly, Size: m.Size, Sum: m.Sum}) {
			return fmt.Errorf("disk %d: it does not say what was in it", i)
		}
		if !path.IsAbs(m.Mount) || path.Clean(m.Mount) != m.Mount || strings.ContainsFunc(m.Mount, unicode.IsControl) || i > 0 && marks[i-1].Mount >= m.Mount {
			return fmt.Errorf("disk at %.64q: not a place for it", m.Mount)
		}
	}
	return nil
}

// checkPlaces makes sure that places of mounts could be those of one sandbox.
func checkPlaces(places []savedPlace) error {
	c := api.Config{Image: "any"}
	for _, p := range places {
		m := api.Mount{Source: "/", Target: p.Target, Mode: p.Mode}
		if p.Mode == api.MountMemory {
			m.Source = ""
		}
		c.Mounts = append(c.Mounts, m)
	}
	return c.Validate()
}

// importedMemory is what all folders in memory may hold that a snapshot from elsewhere
// asks for, in bytes. Holes in a small file become zeros in this host's memory. Whoever
// restores it may say more.
const importedMemory = 4 << 30

// boundMemory has folders in memory hold no more than that.
func boundMemory(mounts []api.Mount) {
	left := int64(importedMemory)
	for i := range mounts {
		m := &mounts[i]
		if m.Quota == 0 {
			m.Quota = workspace.DefaultMemory
		}
		m.Quota = max(1, min(m.Quota, left)) // 0 would be the default
		left -= m.Quota
	}
}

// disarm takes out of a record what is not a stranger's to choose: what reaches this
// host, what would be read or run on it, and keys that others have. Rules go on to
// hold where they name what is public.
func (r *savedRecord) disarm() {
	r.Config.Sockets, r.Config.Secrets, r.Config.SecretIn = nil, nil, nil
	r.Config.Mounts = slices.DeleteFunc(r.Config.Mounts, func(m api.Mount) bool { return m.Mode != api.MountMemory })
	boundMemory(r.Config.Mounts)
	n := &r.Config.Network
	*n = api.Network{
		None: n.None, MTU: n.MTU, DNSMode: n.DNSMode, Intercept: n.Intercept,
		Allow: slices.DeleteFunc(n.Allow, api.Rule.IsAddress), Deny: n.Deny,
		// The guest's file has all of them. To know one here is to open its address.
		AddHosts: slices.DeleteFunc(n.AddHosts, func(h api.HostIPMapping) bool {
			addr, err := netip.ParseAddr(h.IP)
			if err != nil {
				return true
			}
			_, special := policy.Special(addr)
			return special
		}),
	}
	if r.Network != nil {
		r.Network.CA = nil
	}
}
