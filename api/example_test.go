package api_test

import (
	"encoding/json"
	"fmt"
	"log"

	"github.com/matchlock/matchlock/api"
)

// All faults of a configuration are told at once.
func ExampleConfig_Validate() {
	config := api.Config{Image: "debian:12", WorkDir: "src", Memory: 16 * api.MiB}
	fmt.Println(config.Validate())
	// Output:
	// working directory "src": not an absolute path
	// memory 16 MiB: a guest needs at least 112 MiB to boot
}

// In JSON, as in a project's file, parts with a flag are the flag's text.
func ExampleConfig_MarshalJSON() {
	config := api.Config{
		Image:  "debian:12",
		Memory: 1 * api.GiB,
		Mounts: []api.Mount{{Source: "/home/ada/src", Target: "/src", Mode: api.MountOverlay}},
	}
	var err error
	if config.Network.Allow, err = api.ParseRules("pypi.org:443", "*.pythonhosted.org:443"); err != nil {
		log.Fatal(err)
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output:
	// {
	//   "image": "debian:12",
	//   "memory": 1073741824,
	//   "mounts": [
	//     "/home/ada/src:/src:overlay"
	//   ],
	//   "network": {
	//     "allow": [
	//       "pypi.org:443",
	//       "*.pythonhosted.org:443"
	//     ]
	//   }
	// }
}
