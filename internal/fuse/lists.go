package fuse

import (
	"container/list"
	"slices"
	"strings"
	"sync"

	"github.com/matchlock/matchlock/internal/workspace"
)

// lists are what folders held when the guest began to read them. The kernel reads
// one by parts, without a handle: what it gives back with each is where it has got
// to, in which the list is named too. A list that is gone is made again, in the same
// order; it may have changed, as folders do while they are read.
type lists struct {
	mu    sync.Mutex
	kept  list.List // of *listing, the last used first
	names int       // in all of them
	next  uint32

	making chan struct{} // has one for each that is being made
}

// listing is a folder's.
type listing struct {
	folder  uint64
	number  uint32
	entries []workspace.DirEntry
}

const (
	maxLists  = 128
	maxMaking = 4       // at a time
	maxNames  = 1 << 20 // in all lists, and in one
)

// An offset is the list's number and the place in it of what comes next.
func listOffset(number uint32, next int) uint64 { return uint64(number)<<32 | uint64(next) }

// find returns the list that an offset means, nil if it is gone.
func (l *lists) find(folder, offset uint64) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.kept.Front(); e != nil; e = e.Next() {
		if found := e.Value.(*listing); found.number == uint32(offset>>32) && found.folder == folder {
			l.kept.MoveToFront(e)
			return found
		}
	}
	return nil
}

// keep keeps a list for the offsets in it. number is that of the list whose place it
// takes, or 0.
func (l *lists) keep(folder uint64, number uint32, entries []workspace.DirEntry) *listing {
	slices.SortFunc(entries, func(a, b workspace.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if number == 0 {
		l.next = l.next%0x7fff_ffff + 1 // never 0, and offsets are positive
		number = l.next
	}
	made := &listing{folder, number, entries}
	l.kept.PushFront(made)
	l.names += len(entries)
	for l.kept.Len() > maxLists || l.names > maxNames && l.kept.Len() > 1 {
		last := l.kept.Remove(l.kept.Back()).(*listing)
		l.names -= len(last.entries)
	}
	return made
}
