// Package fuse lets a guest's kernel ask for files: it is FUSE with its two halves
// in two machines.
//
// In the guest, a Relay passes the kernel's messages on as they are, between
// /dev/fuse and a port to the host, and understands none of them. On the host, a
// Server decodes them, knows which file is meant, and has a workspace.FS do the
// rest. The messages are those of include/uapi/linux/fuse.h, of minor version 31 or
// later.
//
// What the kernel asks is a hostile guest's wish: every length, name and number is
// checked here before anything is done. What it is worth asking at all is settled
// once, by INIT: the kernel keeps permissions, locks and lists of folders itself.
package fuse
