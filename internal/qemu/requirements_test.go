package qemu

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/matchlock/matchlock/internal/machine"
)

// A snapshot goes on where all that it requires is the same, and the error says
// what is not.
func TestRequirements(t *testing.T) {
	here := requirements{
		Wire: 4, QEMU: "7.2.22 (Debian)", Machine: machineType, Accel: "tcg", TSCKHz: 2_000_000,
		VCPUs: 2, MemoryMB: 512, Lowers: 1, MTU: 1500,
	}
	for name, test := range map[string]struct {
		change func(*requirements)
		want   string // "": it can go on
	}{
		"the same":        {func(*requirements) {}, ""},
		"clock near":      {func(r *requirements) { r.TSCKHz += 1900 }, ""},
		"clock off":       {func(r *requirements) { r.TSCKHz += 2100 }, "made with a time stamp counter of 2002100 kHz, here it is 2000000 kHz"},
		"clock off, low":  {func(r *requirements) { r.TSCKHz -= 2100 }, "a time stamp counter of 1997900 kHz"},
		"QEMU":            {func(r *requirements) { r.QEMU = "10.0.13\x1b[31m" }, "made with QEMU 10.0.13\uFFFD[31m, here it is 7.2.22 (Debian)"},
		"accelerator":     {func(r *requirements) { r.Accel = "kvm" }, "accelerator kvm, here it is tcg"},
		"processor":       {func(r *requirements) { r.CPU = "Xeon 0123" }, "processor Xeon 0123, here it is"},
		"protocol":        {func(r *requirements) { r.Wire = 3 }, "guest protocol 3, here it is 4"},
		"machine":         {func(r *requirements) { r.Machine = "q35" }, "machine q35"},
		"none in reserve": {func(r *requirements) { r.VCPUs = 1 }, ""},
		"processors":      {func(r *requirements) { r.VCPUs = 3 }, "processors: 3, here it is 2"},
		"memory":          {func(r *requirements) { r.MemoryMB = 1024 }, "MiB of memory: 1024"},
		"layers":          {func(r *requirements) { r.Lowers = 2 }, "layers: 2"},
		"disks":           {func(r *requirements) { r.Disks = 1 }, "disks: 1"},
		"link":            {func(r *requirements) { r.MTU = 0 }, "MTU 0, here it is 1500"},
	} {
		said := here
		test.change(&said)
		text, err := json.Marshal(said)
		if err != nil {
			t.Fatal(err)
		}
		h := &hypervisor{needs: here, config: new(machine.Config)}
		h.config.CPUs = 0.5
		err = h.checkRequirements(text)
		var mismatch *MismatchError
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &mismatch) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	h := &hypervisor{needs: here, config: new(machine.Config)}
	for _, text := range []string{"", "{", "null", "[]"} {
		if err := h.checkRequirements(json.RawMessage(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestCPUOf(t *testing.T) {
	const one = "processor\t: 0\nmodel name\t: Xeon\nstepping\t: 1\nmicrocode\t: 0x1\ncpu MHz\t\t: 2000.1\nflags\t\t: fpu avx\n\nprocessor\t: 1\nmodel name\t: Other\n"
	was := cpuOf([]byte(one))
	if !strings.HasPrefix(was, "Xeon ") {
		t.Errorf("got %q", was)
	}
	if got := cpuOf([]byte(strings.Replace(one, "2000.1", "1200.7", 1))); got != was {
		t.Errorf("at another speed it is %q, not %q", got, was)
	}
	for _, change := range [][2]string{{"Xeon", "EPYC"}, {"0x1", "0x2"}, {"fpu avx", "fpu"}} {
		if got := cpuOf([]byte(strings.Replace(one, change[0], change[1], 1))); got == was {
			t.Errorf("with %s it is the same", change[1])
		}
	}
}

// FuzzRequirements has a snapshot say anything: it goes on here, or the error is fit for a
// terminal.
func FuzzRequirements(f *testing.F) {
	f.Add([]byte(`{"wire":4,"qemu":"7.2.22 (Debian)","accel":"tcg","tsc_khz":2000000,"vcpus":2,"memory_mb":512,"lowers":1}`))
	f.Add([]byte(`{"vcpus":9223372036854775807,"tsc_khz":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		h := &hypervisor{needs: requirements{Wire: 4, QEMU: "7.2.22 (Debian)", Accel: "tcg", TSCKHz: 2_000_000, VCPUs: 2, MemoryMB: 512, Lowers: 1}, config: new(machine.Config)}
		h.config.CPUs = 1.5
		if err := h.checkRequirements(said); err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("%q", err)
		}
		if n := h.config.VCPUs; n != 0 && n != 2 && n != 3 {
			t.Errorf("%d processors", n)
		}
	})
}
