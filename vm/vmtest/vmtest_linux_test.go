package vmtest_test

import (
	"testing"

	"github.com/matchlock/matchlock/vm"
	"github.com/matchlock/matchlock/vm/vmtest"
)

func TestInProcess(t *testing.T) {
	vmtest.Run(t, vmtest.InProcess{}, func(*testing.T) *vm.VMConfig {
		return &vm.VMConfig{ID: "box", OverlayEnabled: true, OverlayLowerPaths: []string{"none"}, OverlayUpperPath: "none", NoNetwork: true}
	})
}
