// Command matchlock-guest is the /init of a matchlock guest; internal/guest has it
// all. On the host it is the first step of a hypervisor's process: internal/jail.
package main

import (
	"fmt"
	"os"

	"github.com/matchlock/matchlock/internal/guest"
	"github.com/matchlock/matchlock/internal/jail"
)

func main() {
	name, run := "matchlock-guest", guest.Main
	// The kernel calls /init by its path, whatever its command line says.
	if os.Args[0] == jail.FirstName {
		name, run = jail.FirstName, jail.Main
	}
	err := run()
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(1)
}
