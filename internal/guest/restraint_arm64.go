//go:build linux

package guest

var deniedOnThisArch []denied
