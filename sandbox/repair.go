package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/matchlock/matchlock/internal/boot"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
)

// Repair mends what can be mended without a question, and then looks as Diagnose
// does; what it did are findings that are Fixed. It takes from others the right to
// write our folders, unless they have used it; removes what killed supervisors and
// damaged templates have left; and has a kernel and an initramfs ready, which may
// take a download. Nothing outside our folders is changed, no package is
// installed, and nothing is done as another user.
func Repair(ctx context.Context, o Options) []Finding {
	d := &diagnosis{Options: o.withDefaults()}
	d.reclaim()
	if home, err := d.home(); err == nil { // else Diagnose says why
		d.removeRemains(ctx)
		d.removeDamaged(ctx, home)
		d.prepareBoot(ctx, home)
	}
	for _, f := range Diagnose(ctx, o) {
		// It has been tried, and is known better now.
		if !slices.ContainsFunc(d.findings, func(tried Finding) bool { return tried.Name == f.Name && tried.Status == Fail }) {
			d.findings = append(d.findings, f)
		}
	}
	return d.findings
}

func (d *diagnosis) reclaim() {
	home, err := d.findHome()
	if err != nil {
		return
	}
	changed, err := home.Reclaim()
	for _, dir := range changed {
		d.add("folders", Fixed, dir+": others may not write it any more", "")
	}
	if err != nil {
		d.fail("folders", err)
	}
}

func (d *diagnosis) removeRemains(ctx context.Context) {
	garbage, err := d.GC(ctx)
	for _, id := range garbage.Sandboxes {
		d.add("remains", Fixed, "sandbox "+id+" removed: its supervisor was killed", "")
	}
	for _, file := range garbage.Files {
		d.add("remains", Fixed, file+" removed: its sandbox does not run", "")
	}
	if err != nil {
		d.fail("remains", err)
	}
}

func (d *diagnosis) removeDamaged(ctx context.Context, home state.Home) {
	all, err := qemu.VerifyTemplates(ctx, home.Templates())
	for _, t := range all {
		if t.Damage != "" {
			d.add("templates", Fixed, fmt.Sprintf("template %.12s removed: %s", t.ID, t.Damage), "")
		}
	}
	if err != nil {
		d.fail("templates", err)
	}
}

// prepareBoot fetches a kernel and packs an initramfs, where they are missing.
func (d *diagnosis) prepareBoot(ctx context.Context, home state.Home) {
	if _, err := d.guest(ctx); err != nil {
		return // Diagnose says so; without it nothing is packed
	}
	packed := filepath.Join(home.Cache, "initramfs")
	before, had := entriesOf(packed), d.release(home)
	if _, err := d.bootFiles(ctx, home); err != nil {
		d.fail("kernel", err)
		return
	}
	if now := d.release(home); d.Kernel == "" && had == "" && now != "" {
		d.add("kernel", Fixed, "Linux "+now+" fetched", "")
	}
	for _, name := range entriesOf(packed) {
		if !slices.Contains(before, name) && filepath.Ext(name) == ".cpio" {
			d.add("initramfs", Fixed, filepath.Join(packed, name)+" packed", "")
		}
	}
}

// release is that of the kernel there is, "" when there is none.
func (d *diagnosis) release(home state.Home) string {
	release, _, _ := boot.Look(boot.Options{Own: home.Kernel(), CacheDir: home.Cache, Logger: d.Logger})
	return release
}

// entriesOf are the names in a folder, of which there are none if it cannot be read.
func entriesOf(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// checkRemains tells of what Repair would remove.
func (d *diagnosis) checkRemains(home state.Home) {
	const fix = "`matchlock diagnose --fix` removes that"
	entries, err := state.List(home.Sandboxes())
	if err != nil {
		d.fail("remains", err)
		return
	}
	dead := 0
	for _, e := range entries {
		if !e.Status.Alive() && e.Record.AutoRemove {
			dead++
		}
	}
	templates, err := qemu.Templates(home.Templates())
	damaged := 0
	for _, t := range templates {
		if t.Damage != "" {
			damaged++
		}
	}
	switch {
	case err != nil:
		d.fail("remains", err)
	case dead > 0 || damaged > 0:
		d.add("remains", Warn, fmt.Sprintf("sandboxes of supervisors that were killed: %d; damaged templates: %d", dead, damaged), fix)
	default:
		d.add("remains", OK, "killed processes have left nothing", "")
	}
}
