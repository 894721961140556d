// Package policy answers one question: may it pass? It compiles rules, secrets' scopes and hooks' hosts into a Policy,
// which judges names, flows, and the addresses that names turn out to have.
//
// What is refused by a deny rule is refused, whatever else is written; what no allow rule allows is refused too. A rule
// is about TCP, or where /udp is written about UDP alone, a deny rule as well.
//
// A name needs a rule with that name, a "*.suffix" above it, or "*". Its addresses are looked at too when they are
// dialled. One in a special-purpose range (loopback, private, link-local and all others of the IANA's registries, in
// their IPv6 disguises too) passes only if
//
//   - the user wrote that this is the name's address (--resolve, --add-host, --host-port), or
//   - an allow rule names the address, or a CIDR that lies in such a range. So 10.0.0.0/8 opens private addresses to
//     names that other rules allow; 0.0.0.0/0 opens no special range, just as "*" does not, or
//   - the range is private and --allow-private is given.
//
// An address that the guest dials without having asked for a name needs a rule with the address, a CIDR, or, where it
// is a public one, "*".
//
// The package reads and writes nothing, asks no resolver, and keeps no count of anything: the same question has the same
// answer. A Policy never changes; a change of rules is another Policy.
package policy
