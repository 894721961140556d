//go:build !linux

package jail

import "errors"

// Start is not to be had here.
func Start(*Config) (*Process, error) { return nil, errors.ErrUnsupported }

// Sweep has nothing to do here.
func Sweep() {}

// Main is not to be had here.
func Main() error { return errors.ErrUnsupported }

type openings struct{}

func (*openings) close() {}

type cgroup struct{}

func (*Process) settle()      {}
func (*Process) removeGroup() {}
