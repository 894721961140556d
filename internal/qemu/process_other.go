//go:build !linux

package qemu

import "os/exec"

// setParentDeathSignal does nothing here: Create refuses to run elsewhere than
// on Linux.
func setParentDeathSignal(*exec.Cmd) {}

func endGroup(int) {}
