// Package api holds the plain data that the parts of matchlock hand to each
// other and show to users: how a command runs, how it ended, what a sandbox is
// made of. It does nothing but name, default and validate; it opens no file and
// starts no process.
package api
