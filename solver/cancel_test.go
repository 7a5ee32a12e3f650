//go:build !race

package solver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// TestCanceledBuild cancels builds of an edge at random moments and builds it
// again, with and without others that build it meanwhile. What nobody waits for
// is given up, and must not fail those who do wait, or come later. The moment
// that matters lasts as long as the edge looks at the requests that it has,
// which is why it takes some rounds.
//
// It is not for the race detector: what package pipe reads when a request is
// finalized it writes, elsewhere, when one is canceled.
func TestCanceledBuild(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec
	s := newTestSolver(t)

	for i := range 5000 {
		name := func(v string) string { return fmt.Sprintf("%s-%d", v, i) }
		in := vtx(vtxOpt{name: name("in"), cacheKeySeed: name("in")})
		v := vtx(vtxOpt{name: name("v"), cacheKeySeed: name("v"), inputs: []Edge{{Vertex: in}}})
		j := newTestJob(t, s, name("job"))
		build := func(ctx context.Context) error {
			res, err := j.Build(ctx, Edge{Vertex: v})
			if err != nil {
				return err
			}
			return res.Release(context.WithoutCancel(ctx))
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		var eg errgroup.Group
		eg.Go(func() error {
			if err := build(ctx); err != nil && !errdefs.IsCanceled(ctx, err) {
				return err
			}
			return nil
		})
		if rnd.IntN(2) == 0 {
			eg.Go(func() error { return build(t.Context()) })
		}
		for range rnd.IntN(30) {
			runtime.Gosched()
		}
		cancel(context.Canceled)
		require.NoError(t, eg.Wait(), "round %d", i)
		require.NoError(t, build(t.Context()), "round %d", i)
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}
