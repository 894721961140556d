package fuse

import (
	"encoding/json"
	"fmt"
	"syscall"

	"github.com/matchlock/matchlock/internal/workspace"
)

// state is what a server knows of a guest, for a server of a copy of that guest. The
// copy's kernel goes on with the numbers of nodes that it has.
type state struct {
	Slots Slots           `json:"slots"`
	Owner workspace.Owner `json:"owner"`
	Next  uint64          `json:"next"`
	Nodes []savedNode     `json:"nodes"`
}

type savedNode struct {
	ID      uint64       `json:"id"`
	Inode   uint64       `json:"inode"`
	File    workspace.ID `json:"file"`
	Kind    uint32       `json:"kind"`
	Lookups uint64       `json:"lookups"`
	Names   []savedName  `json:"names,omitempty"`
	Readers int          `json:"readers,omitempty"`
	Writers int          `json:"writers,omitempty"`
}

type savedName struct {
	Folder uint64 `json:"folder"`
	Name   []byte `json:"name"` // of any bytes
}

// MarshalJSON returns what UnmarshalJSON takes. The guest should stand still.
func (s *Server) MarshalJSON() ([]byte, error) {
	n := s.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	if !s.greeted {
		return []byte("null"), nil
	}
	st := state{Slots: s.slots, Owner: s.owner, Next: n.next}
	for _, is := range n.byID {
		saved := savedNode{ID: is.id, Inode: is.ino, File: is.file, Kind: is.kind, Lookups: is.lookups, Readers: is.reading.users, Writers: is.writing.users}
		for _, at := range is.names {
			saved.Names = append(saved.Names, savedName{at.folder, []byte(at.name)})
		}
		st.Nodes = append(st.Nodes, saved)
	}
	return json.Marshal(st)
}

// UnmarshalJSON has a new server know what another one did. Files that were open are
// opened again when they are needed: by their names, and if it is the same file there.
func (s *Server) UnmarshalJSON(text []byte) error {
	var st *state
	if err := json.Unmarshal(text, &st); err != nil || st == nil {
		return err
	}
	n, opened := newNodes(s.options.MaxNodes), 0
	if len(st.Nodes) > n.limit {
		return fmt.Errorf("state of the guest's files: %d nodes", len(st.Nodes))
	}
	for _, saved := range st.Nodes {
		is := &node{id: saved.ID, ino: saved.Inode, file: saved.File, kind: saved.Kind & syscall.S_IFMT, lookups: saved.Lookups}
		if saved.Readers < 0 || saved.Writers < 0 || saved.Readers > s.options.MaxOpen || saved.Writers > s.options.MaxOpen {
			return fmt.Errorf("state of the guest's files: node %d is open %d and %d times", is.id, saved.Readers, saved.Writers)
		}
		is.reading.users, is.writing.users = saved.Readers, saved.Writers
		opened += saved.Readers + saved.Writers
		if is.id == rootID {
			is.lookups, is.kind = 1, syscall.S_IFDIR
		} else if n.byID[is.id] != nil || is.id >= st.Next || is.id == 0 {
			return fmt.Errorf("state of the guest's files: node %d cannot be", is.id)
		} else {
			n.byFile[is.file] = is
		}
		n.byID[is.id] = is
	}
	if opened > s.options.MaxOpen {
		return fmt.Errorf("state of the guest's files: %d are open", opened)
	}
	for _, saved := range st.Nodes {
		is := n.byID[saved.ID]
		for _, at := range saved.Names {
			d := decoder{rest: append(at.Name, 0)}
			to := place{at.Folder, d.name()}
			folder := n.byID[at.Folder]
			if d.err != 0 || len(d.rest) > 0 || folder == nil || folder.kind != syscall.S_IFDIR || n.byName[to] != nil || saved.ID == rootID ||
				len(is.names) == maxLinks || is.kind == syscall.S_IFDIR && (len(is.names) > 0 || n.within(folder, is)) {
				return fmt.Errorf("state of the guest's files: node %d has the name %.64q", saved.ID, at.Name)
			}
			n.name(is, to)
		}
	}
	for _, saved := range st.Nodes {
		if is := n.byID[saved.ID]; is.id != rootID && is.lookups == 0 && is.inside == 0 {
			return fmt.Errorf("state of the guest's files: node %d is there for nobody", is.id)
		}
	}
	// A tree's root is never looked up again: it is what is there now.
	for at, is := range n.byName {
		if at.folder != rootID {
			continue
		}
		if a, err := s.tree.Stat(at.name); err == nil && a.Mode&syscall.S_IFMT == is.kind && n.byFile[a.ID] == nil {
			n.changedFile(is, a.ID)
		}
	}
	n.next, n.opened = st.Next, opened
	s.nodes, s.greeted, s.slots, s.owner = n, true, st.Slots, st.Owner
	return nil
}
