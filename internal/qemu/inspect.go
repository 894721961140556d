package qemu

import "context"

// Host is what decides how a backend's machines run here.
type Host struct {
	Path    string // of QEMU
	Version string // as QEMU tells it
	Accel   Accel
}

// Inspect finds out what Create would choose, and refuses what Create would
// refuse. With an error, Host has what was found before it.
func (b *Backend) Inspect(ctx context.Context) (h Host, err error) {
	if h.Path, err = findQEMU(); err != nil {
		return h, err
	}
	v, err := checkVersion(ctx, h.Path, b.options.CacheDir)
	h.Version = v.Text
	if err != nil {
		return h, err
	}
	h.Accel, err = chooseAccel(ctx, b.options.Accel, b.options.CacheDir)
	return h, err
}
