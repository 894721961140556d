// Package guest is the guest's PID 1: it makes a Linux system out of a kernel
// and a few disks, puts user code into it under restraint, and serves the
// agent's protocol. It runs inside the machine only; everything it knows comes
// from the kernel command line and over the control port. The host trusts
// nothing that it says.
package guest
