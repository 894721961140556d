package qemu

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
)

// Blocks implements machine.Counter.
func (h *hypervisor) Blocks(ctx context.Context) (int, error) {
	if h.accel.Name != accelTCG {
		return 0, errors.ErrUnsupported
	}
	h.mu.Lock()
	i := h.current
	h.mu.Unlock()
	if i == nil || !i.answered() {
		return 0, net.ErrClosed
	}
	var jit struct {
		Text string `json:"human-readable-text"`
	}
	if err := i.qmp.Execute(ctx, "x-query-jit", nil, nil, &jit); err != nil {
		return 0, err
	}
	return parseBlocks(jit.Text)
}

// parseBlocks reads what QEMU has for people: among other lines "TB count  123".
func parseBlocks(text string) (int, error) {
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(line, "TB count "); ok {
			return strconv.Atoi(strings.TrimSpace(number))
		}
	}
	return 0, errors.New("x-query-jit: QEMU tells no count of blocks")
}
