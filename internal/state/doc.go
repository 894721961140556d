// Package state says where matchlock's things are on this host and which
// sandboxes are alive.
//
// A sandbox has a folder below the state folder, named by its id. Its
// supervisor holds an flock on the file "lock" in it for as long as it lives:
// that lock, not a recorded process id, is what being alive means, for it goes
// with the process however that ends. What dead supervisors left, Sweep
// removes.
//
// The package knows neither images nor machines, and starts nothing.
package state
