package fuse

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/matchlock/matchlock/internal/workspace"
)

// What a server knows of a guest is for a server of a copy of that guest, whose kernel
// goes on with the numbers of nodes that it has. It is written as lines of JSON: a
// savedServer, then each node. Whoever reads it holds one line in memory.
type savedServer struct {
	Slots Slots           `json:"slots"`
	Owner workspace.Owner `json:"owner"`
	Next  uint64          `json:"next"`
	Nodes int             `json:"nodes"` // that follow
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
	Name   []byte `json:"name"` // need not be UTF-8
}

// maxStateLine is more than a node with maxLinks names takes.
const maxStateLine = 64 << 10

// Save writes what Load reads: nothing, as long as the guest has said nothing. The guest
// should stand still.
func (s *Server) Save(to io.Writer) error {
	n := s.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	if !s.greeted {
		return nil
	}
	w := bufio.NewWriter(to)
	lines := json.NewEncoder(w)
	if err := lines.Encode(savedServer{s.slots, s.owner, n.next, len(n.byID)}); err != nil {
		return err
	}
	for _, is := range n.byID {
		saved := savedNode{ID: is.id, Inode: is.ino, File: is.file, Kind: is.kind, Lookups: is.lookups, Readers: is.reading.users, Writers: is.writing.users}
		for _, at := range is.names {
			saved.Names = append(saved.Names, savedName{at.folder, []byte(at.name)})
		}
		if err := lines.Encode(saved); err != nil {
			return err
		}
	}
	return w.Flush()
}

// Load has a new server know what another one did, which may be anybody's. Files that
// were open are opened again when they are needed: by their names, and if it is the same
// file there.
func (s *Server) Load(from io.Reader) error {
	r := bufio.NewReaderSize(from, maxStateLine)
	if _, err := r.Peek(1); err == io.EOF {
		return nil
	}
	if err := s.load(r); err != nil {
		return fmt.Errorf("state of the guest's files: %w", err)
	}
	return nil
}

func readState(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

func (s *Server) load(r *bufio.Reader) error {
	var head savedServer
	if err := readState(r, &head); err != nil {
		return err
	}
	n := newNodes(s.options.MaxNodes)
	if head.Nodes > n.limit {
		return fmt.Errorf("%d nodes", head.Nodes)
	}
	for range head.Nodes {
		var saved savedNode
		if err := readState(r, &saved); err != nil {
			return err
		}
		if saved.Readers < 0 || saved.Writers < 0 || saved.Readers > s.options.MaxOpen || saved.Writers > s.options.MaxOpen {
			return fmt.Errorf("node %d is open %d and %d times", saved.ID, saved.Readers, saved.Writers)
		}
		is := &node{id: saved.ID, ino: saved.Inode, file: saved.File, kind: saved.Kind & syscall.S_IFMT, lookups: saved.Lookups}
		is.reading.users, is.writing.users = saved.Readers, saved.Writers
		n.opened += saved.Readers + saved.Writers
		if is.id == rootID {
			is.lookups = 1
		} else if n.byID[is.id] != nil || is.id >= head.Next || is.id == 0 {
			return fmt.Errorf("node %d cannot be", is.id)
		} else {
			n.byFile[is.file] = is
		}
		n.byID[is.id] = is
		for _, at := range saved.Names {
			d := decoder{rest: append(at.Name, 0)}
			where := place{at.Folder, d.name()}
			full := len(is.names) == maxLinks || len(is.names) == 1 && is.kind == syscall.S_IFDIR || len(n.byName) == n.limit
			if d.err != 0 || len(d.rest) > 0 || n.byName[where] != nil || is.id == rootID || full {
				return fmt.Errorf("node %d has the name %.64q", is.id, at.Name)
			}
			is.names, n.byName[where] = append(is.names, where), is
		}
	}
	if n.opened > s.options.MaxOpen {
		return fmt.Errorf("%d are open", n.opened)
	}
	if n.byID[rootID].kind != syscall.S_IFDIR {
		return errors.New("its root is no folder")
	}
	for at, is := range n.byName {
		folder := n.byID[at.folder]
		if folder == nil || folder.kind != syscall.S_IFDIR {
			return fmt.Errorf("node %d lies in node %d", is.id, at.folder)
		}
		folder.inside++
	}
	if err := n.checkFolders(); err != nil {
		return err
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
	n.next = head.Next
	s.nodes, s.greeted, s.slots, s.owner = n, true, head.Slots, head.Owner
	return nil
}

// checkFolders makes sure that no folder lies in itself, and that each node is somebody's.
func (n *nodes) checkFolders() error {
	outermost := map[*node]bool{} // or in one that is
	for _, is := range n.byID {
		if is.id != rootID && is.lookups == 0 && is.inside == 0 {
			return fmt.Errorf("node %d is there for nobody", is.id)
		}
		var inner []*node
		for at := is; len(at.names) > 0 && !outermost[at]; at = n.byID[at.names[0].folder] {
			if len(inner) > maxDepth {
				return fmt.Errorf("node %d lies in itself, or too deep", is.id)
			}
			inner = append(inner, at)
		}
		for _, at := range inner {
			outermost[at] = true
		}
	}
	return nil
}
