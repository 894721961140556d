// Package names answers one question: what does a name mean, to the guest and to the host? To the guest an address that
// is the name's alone, which a Table gives and a Server tells; to the host what its own Resolver says, when a flow is
// dialled and not before.
//
// The guest's queries end here. A name that may be reached is answered with a synthetic address out of 198.18.0.0/15,
// and no query leaves the host for it: whoever answers for the name outside can neither rebind it nor be told anything.
// A name that may not be reached does not exist (NXDOMAIN, with an Extended DNS Error, RFC 8914). TXT, MX and SRV
// records of names that may be reached are the only thing that is asked of others.
//
// The package decides nothing about what may be reached, listens nowhere, and dials no flow.
package names
