package llbsolver

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// FuzzLazySolve has arbitrary bytes as the definition of a lazy solve. Whatever
// they are: the solve has the outcome that it has upstream, evaluating gives the
// error of upstream's load, the digests that are told without loading are those
// of the loaded vertices, and the build ends.
func FuzzLazySolve(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec
	for range 40 {
		def, err := randomState(rnd, rnd.IntN(4)).Marshal(context.Background(), llb.LinuxAmd64)
		require.NoError(f, err)
		dt, err := def.ToPB().Marshal()
		require.NoError(f, err)
		f.Add(dt)
	}
	f.Fuzz(func(t *testing.T, dt []byte) {
		var def pb.Definition
		if err := def.Unmarshal(dt); err != nil {
			return
		}
		b := newBench(t)
		plain, plainBridge := b.job("plain")
		_, wantSolve := plainBridge.solve(t.Context(), frontend.SolveRequest{Definition: def.CloneVT()}, "")
		want, wantLoad := loadedDigests(t, plainBridge, &frontend.SolveRequest{Definition: def.CloneVT()})
		require.NoError(t, plain.Discard())

		j, br := b.job("lazy")
		req := frontend.SolveRequest{Definition: def.CloneVT()}
		if told, ok := br.vertexDigests(t.Context(), &req, j); ok && wantLoad == nil {
			requireSameDigests(t, want, told)
		}
		res, err := br.Solve(t.Context(), req, "")
		require.Equal(t, errorText(wantSolve), errorText(err), "a lazy solve fails when upstream's does")
		if err == nil && res.Ref != nil && wantLoad != nil {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errors.New("it hangs"))
			defer cancel()
			_, err := res.Ref.Result(ctx)
			// upstream looks at ops in the order of a map: with two mistakes in
			// a definition it has two errors
			want := map[string]bool{errorText(wantLoad): true}
			for i := 0; i < 100 && !want[errorText(err)]; i++ {
				_, other := loadedDigests(t, br, &frontend.SolveRequest{Definition: def.CloneVT()})
				want[errorText(other)] = true
			}
			require.Contains(t, want, errorText(err), "evaluating gives an error of loading")
		}
		require.NoError(t, j.Discard())
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func requireSameDigests(t *testing.T, want, got []digest.Digest) {
	t.Helper()
	want, got = slices.Clone(want), slices.Clone(got)
	slices.Sort(want)
	slices.Sort(got)
	require.Equal(t, slices.Compact(want), slices.Compact(got))
}
