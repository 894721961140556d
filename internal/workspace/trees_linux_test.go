package workspace_test

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/matchlock/matchlock/internal/workspace"
	"github.com/matchlock/matchlock/internal/workspace/workspacetest"
)

// TestTrees holds each tree to the same list.
func TestTrees(t *testing.T) {
	host := func(o workspace.HostOptions) func(t *testing.T) workspace.FS {
		return func(t *testing.T) workspace.FS {
			o.Owner = workspacetest.Guest
			fs, err := workspace.OpenHost(t.TempDir(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { fs.Close() })
			return fs
		}
	}
	memory := func(*testing.T) workspace.FS {
		return workspace.NewMemory(workspace.MemoryOptions{Owner: workspacetest.Guest})
	}
	overlay := func(t *testing.T) workspace.FS {
		fs, err := workspace.OpenOverlay(host(workspace.HostOptions{ReadOnly: true})(t), t.TempDir()+"/overlay", workspace.OverlayOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { fs.Close() })
		return fs
	}
	for name, open := range map[string]func(*testing.T) workspace.FS{
		"Host":    host(workspace.HostOptions{}),
		"Quota":   host(workspace.HostOptions{Quota: 64 << 20, Files: 10_000}),
		"Memory":  memory,
		"Overlay": overlay,
		"Hooks": func(t *testing.T) workspace.FS {
			fs, err := workspace.NewHooks(overlay(t), workspace.HookOptions{
				Hooks: []workspace.Hook{{Before: func(context.Context, *workspace.Op) error { return nil }}},
			})
			if err != nil {
				t.Fatal(err)
			}
			return fs
		},
		"Filter": func(t *testing.T) workspace.FS {
			fs, err := workspace.NewFilter(memory(t), []string{"secret"}, []string{"fixed", "/fixed2/y"})
			if err != nil {
				t.Fatal(err)
			}
			return fs
		},
	} {
		t.Run(name, func(t *testing.T) { workspacetest.RunFS(t, open) })
	}
}

// TestRouterTrees has a tree in a router do what it does alone.
func TestRouterTrees(t *testing.T) {
	for name, behaviour := range workspacetest.FS {
		if name == "Root" { // its root is another one
			continue
		}
		t.Run(name, func(t *testing.T) {
			router, err := workspace.NewRouter([]workspace.Mounted{
				{Name: "0", FS: workspace.NewMemory(workspace.MemoryOptions{})},
				{Name: "1", FS: workspace.NewMemory(workspace.MemoryOptions{Owner: workspacetest.Guest})},
			})
			if err != nil {
				t.Fatal(err)
			}
			behaviour(t, below{router, "1"})
		})
	}
}

// TestAll holds the list for mounted folders to folders of the host.
func TestAll(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(workspacetest.All)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			workspacetest.All[name](t, t.TempDir())
		})
	}
}
