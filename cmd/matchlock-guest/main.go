// Command matchlock-guest is the /init of a matchlock guest. It is of no use
// anywhere else; internal/guest has it all.
package main

import (
	"fmt"
	"os"

	"github.com/matchlock/matchlock/internal/guest"
)

func main() {
	err := guest.Main()
	fmt.Fprintln(os.Stderr, "matchlock-guest:", err)
	os.Exit(1)
}
