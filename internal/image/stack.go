package image

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// stack says which files an image's layers come in.
type stack struct {
	merged []v1.Hash // the lowest layers, which share one file; none of most images
	single []v1.Hash // those above, one file each, base first
}

// newStack plans the files for the layers with these diff ids, base first.
//
// Of a layer that an image has twice only the upper one counts: it decides about every path in it once more, so the
// lower one could as well not be there. The lowest are merged if there are more than MaxLayers, and up to the highest
// that cannot lie on others as it is, as clings tells.
func newStack(diffIDs []v1.Hash, clings func(v1.Hash) bool) stack {
	var ids []v1.Hash
	for i, id := range diffIDs {
		if !slices.Contains(diffIDs[i+1:], id) {
			ids = append(ids, id)
		}
	}
	cut := 0
	if len(ids) > MaxLayers {
		cut = len(ids) - (MaxLayers - 1)
	}
	for i := len(ids) - 1; i > 0 && i >= cut; i-- {
		if clings(ids[i]) {
			cut = i + 1
		}
	}
	return stack{merged: ids[:cut], single: ids[cut:]}
}

// stack plans the files for an image by what the store knows of its layers.
func (s *Store) stack(diffIDs []v1.Hash) stack {
	return newStack(diffIDs, func(id v1.Hash) bool {
		_, err := os.Lstat(s.layerPath(clingsFile(id)))
		return err == nil
	})
}

// chainID names layers lying on each other, as the OCI image specification does.
func chainID(diffIDs []v1.Hash) v1.Hash {
	chain := diffIDs[0]
	for _, id := range diffIDs[1:] {
		sum := sha256.Sum256([]byte(chain.String() + " " + id.String()))
		chain = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	}
	return chain
}

// The files in layers/. A layer that clings has an empty file beside its own to say so: lying on others it would not
// look as it should, because its root hides all below, or because it has files in folders that it has no entry for, so
// that the file system cannot know whose attributes the folder is to keep.
func layerFile(diffID v1.Hash) string  { return diffID.Hex + ".erofs" }
func clingsFile(diffID v1.Hash) string { return diffID.Hex + ".clings" }
func mergedFile(chain v1.Hash) string  { return "merged-" + chain.Hex + ".erofs" }

// layers lists the stack's files in a store, base first.
func (st stack) layers(s *Store) []Layer {
	var layers []Layer
	if len(st.merged) > 0 {
		chain := chainID(st.merged)
		layers = append(layers, Layer{s.layerPath(mergedFile(chain)), "erofs", chain.String()})
	}
	for _, id := range st.single {
		layers = append(layers, Layer{s.layerPath(layerFile(id)), "erofs", id.String()})
	}
	return layers
}
