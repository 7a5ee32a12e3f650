package bench

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestFreshChains(t *testing.T) {
	known := map[digest.Digest]bool{}
	for range 2 {
		defs, err := chainsOf(t.Context(), 9, 3, 9)
		require.NoError(t, err)
		for i, def := range defs {
			require.Len(t, def.Def, []int{3, 9}[i]+2, "the first op and the terminal are no steps")
			require.Len(t, def.Metadata, len(def.Def))
			var last digest.Digest
			for i, dt := range def.Def {
				dgst := digest.FromBytes(dt)
				require.NotNil(t, def.Metadata[string(dgst)])
				var op pb.Op
				require.NoError(t, op.Unmarshal(dt))
				if i > 0 {
					require.Equal(t, string(last), op.Inputs[0].Digest)
				}
				last = dgst
			}
		}
		require.Equal(t, defs[0].Def[:4], defs[1].Def[:4], "the longer one continues the shorter one")
		for _, dt := range defs[1].Def {
			require.False(t, known[digest.FromBytes(dt)], "seen before")
			known[digest.FromBytes(dt)] = true
		}
	}
}
