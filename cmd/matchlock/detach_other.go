//go:build !linux

package main

import "syscall"

// dup makes a descriptor the same as another.
func dup(from, to int) error { return syscall.Dup2(from, to) }
