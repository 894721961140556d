// Package state says where matchlock's things are on this host, which sandboxes
// there are, and which of them live.
//
// A sandbox has a folder below the state folder, named by its id. Its
// supervisor holds an flock on the file "lock" in it for as long as it lives:
// that lock, not a recorded process id, is what being alive means, for it goes
// with the process however that ends. What is known of the sandbox stands in
// state.json, which is replaced as a whole. There is no other list of
// sandboxes: whoever wants one looks at the folders.
//
// What dead supervisors left Sweep removes, but for sandboxes that were to be
// kept. The package knows neither images nor machines, and starts nothing.
package state
