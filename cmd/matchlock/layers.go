package main

import (
	"cmp"
	"maps"
	"path"
	"slices"

	"github.com/matchlock/matchlock/api"
)

// laidOver is what the flags say over the configuration of a project or a snapshot.
func (f *runFlags) laidOver(c api.Config) (api.Config, error) {
	lay(&c, &f.config)
	return c, f.networkFlags.into(&c)
}

// lay lays one configuration over another. Of what there can be one,
// the upper's is taken if it says anything, lists are joined, and what is given for a place
// or a name takes that of what was there.
func lay(under, over *api.Config) {
	if over.Image != "" && over.Image != under.Image { // the rest was said of the other
		under.Entrypoint, under.Command = nil, nil
	}
	under.Image, under.Pull = cmp.Or(over.Image, under.Image), cmp.Or(over.Pull, under.Pull)
	under.Platform = cmp.Or(over.Platform, under.Platform)
	if over.Command != nil {
		under.Command = over.Command
	}
	if over.Entrypoint != nil {
		under.Entrypoint = over.Entrypoint
	}
	under.Env, under.Labels = merged(under.Env, over.Env), merged(under.Labels, over.Labels)
	under.User, under.WorkDir = cmp.Or(over.User, under.User), cmp.Or(over.WorkDir, under.WorkDir)
	under.Timeout, under.TTL = cmp.Or(over.Timeout, under.Timeout), cmp.Or(over.TTL, under.TTL)
	under.IdleTimeout, under.Restart = cmp.Or(over.IdleTimeout, under.IdleTimeout), cmp.Or(over.Restart, under.Restart)
	under.Hostname = cmp.Or(over.Hostname, under.Hostname)

	under.CPUs, under.Memory = cmp.Or(over.CPUs, under.CPUs), cmp.Or(over.Memory, under.Memory)
	under.DiskSize, under.ShmSize = cmp.Or(over.DiskSize, under.DiskSize), cmp.Or(over.ShmSize, under.ShmSize)
	under.Ulimits = joined(under.Ulimits, over.Ulimits, func(u api.Ulimit) string { return u.Name })

	under.Privileged, under.AllowSetuid = under.Privileged || over.Privileged, under.AllowSetuid || over.AllowSetuid
	under.ReadOnly = under.ReadOnly || over.ReadOnly
	under.CapAdd, under.CapDrop = slices.Concat(under.CapAdd, over.CapAdd), slices.Concat(under.CapDrop, over.CapDrop)

	under.Coherent, under.FileEvents = under.Coherent || over.Coherent, under.FileEvents || over.FileEvents
	under.FileRules = slices.Concat(under.FileRules, over.FileRules)
	under.Sockets = joined(under.Sockets, over.Sockets, func(s api.Socket) string { return path.Clean(s.Guest) })
	taken := map[string]bool{}
	for _, d := range over.Disks {
		taken[path.Clean(d.Mount)] = true
	}
	for _, m := range over.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	for _, t := range over.Tmpfs {
		taken[path.Clean(t.Path)] = true
	}
	under.Disks = append(without(under.Disks, func(d api.Disk) bool { return taken[path.Clean(d.Mount)] }), over.Disks...)
	under.Mounts = append(without(under.Mounts, func(m api.Mount) bool { return taken[path.Clean(m.Target)] }), over.Mounts...)
	under.Tmpfs = append(without(under.Tmpfs, func(t api.Tmpfs) bool { return taken[path.Clean(t.Path)] }), over.Tmpfs...)
	under.AddNetwork(over.Network)
	under.Secrets, under.SecretIn = slices.Concat(under.Secrets, over.Secrets), slices.Concat(under.SecretIn, over.SecretIn)
}

// joined are both lists, without what of the lower has a key that the upper has.
func joined[T any](under, over []T, key func(T) string) []T {
	return append(without(under, func(u T) bool {
		return slices.ContainsFunc(over, func(o T) bool { return key(o) == key(u) })
	}), over...)
}

func without[T any](list []T, drop func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), drop)
}

// merged lays one map over another.
func merged(under, over map[string]string) map[string]string {
	all := maps.Clone(under)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, over)
	return all
}
