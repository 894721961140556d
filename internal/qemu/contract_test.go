package qemu_test

import (
	"testing"

	"github.com/matchlock/matchlock/vm"
	"github.com/matchlock/matchlock/vm/vmtest"
)

func TestVMKeepsTheContract(t *testing.T) {
	needVM(t)
	vmtest.Run(t, newBackend(t), func(t *testing.T) *vm.VMConfig { return overlayConfig(t, "contract") })
}
