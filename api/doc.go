// Package api holds the plain data that the parts of matchlock hand to each
// other and show to users: how a command runs, how it ended, what a sandbox is
// made of. It does nothing but name, default and validate; it opens no file and
// starts no process.
//
// [Config] is where to begin: package sandbox makes a sandbox of one. Sizes are in bytes
// (256 * [MiB]) and zero values are defaults. What a flag of the program matchlock
// says in a line of text, such as a rule of the network or a mount, is a type that
// reads that text, and JSON has it so:
//
//	config := api.Config{
//		Image:   "python:3.13",
//		Command: []string{"python3", "/src/main.py"},
//		Memory:  1 * api.GiB,
//		Mounts:  []api.Mount{{Source: "/home/ada/src", Target: "/src", Mode: api.MountOverlay}},
//	}
//	config.Network.Allow, err = api.ParseRules("pypi.org:443", "*.pythonhosted.org:443")
//
// The types are values without locks: copies are independent but for what slices, maps
// and pointers in them share, and several goroutines may read one. Methods that read
// a text leave their receiver as it was, or in part changed, after an error.
package api
