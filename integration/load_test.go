package integration

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var (
	loadChains   = flag.Int("chains", 30, "chains that are built at once")
	loadClients  = flag.Int("clients", 50, "clients of TestClients")
	loadDuration = flag.Duration("duration", 0, "how long TestClients runs, it is skipped by default")
)

// TestChainsAtOnce builds many chains at once, all with the same secret id and different
// values, and checks that nothing is left.
func TestChainsAtOnce(t *testing.T) {
	bed := newRandomBed(t, testbed.Graphload)
	chain := func(ctx context.Context, i int) error {
		value := fmt.Sprintf("value-%d", i)
		state := sh(bed.root, `cat /run/secrets/token > /seen`, secretFile("token"))
		base := peer{name: fmt.Sprintf("base %d", i), secrets: map[string]string{"token": value}, locals: bed.locals}
		child := peer{name: fmt.Sprintf("child %d", i), secrets: map[string]string{"token": "of the child"}, locals: bed.locals}
		return base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
			if _, err := b.solve(ctx, state); err != nil {
				return err
			}
			return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, sh(state, "true"))
				if err != nil {
					return err
				}
				seen, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen"})
				if err == nil && string(seen) != value {
					err = errors.Errorf("chain %d saw %q", i, seen)
				}
				return err
			})
		})
	}
	chainsAtOnce(t, bed, chain)
}

// chainsAtOnce builds chains at once, and checks that nothing of them is left.
func chainsAtOnce(t *testing.T, bed *randomBed, chain func(context.Context, int) error) {
	t.Helper()
	chains := func(n int) {
		eg, ctx := errgroup.WithContext(t.Context())
		for i := range n {
			eg.Go(func() error { return chain(ctx, i) })
		}
		require.NoError(t, eg.Wait())
	}

	chains(10) // the daemon keeps some memory after its first builds
	require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
	before, err := measure(t.Context(), bed.daemon, bed.client)
	require.NoError(t, err)
	before.most = mostGoroutines(t, bed.daemon, func() { chains(*loadChains) })
	requireIdle(t, bed.daemon, bed.client, before)
}

// TestClients lets many clients build random graphs for some time, and checks that nothing
// is left. TestRandomGraphs has the graphs whose builds end while their steps run.
func TestClients(t *testing.T) {
	if *loadDuration == 0 {
		t.Skip("-duration is not set")
	}
	bed := newRandomBed(t, testbed.Graphload)
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64() //nolint:gosec // not for secrets
	}
	t.Logf("-seed %d", seed)
	run := func(n int) error {
		r := newRandomRun(bed, newRandomGraph(seed, n).calm())
		if err := r.run(t.Context()); err != nil {
			return r.failure(err)
		}
		return nil
	}
	require.NoError(t, run(0))
	require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
	before, err := measure(t.Context(), bed.daemon, bed.client)
	require.NoError(t, err)

	end := time.Now().Add(*loadDuration)
	var number atomic.Int64
	before.most = mostGoroutines(t, bed.daemon, func() {
		var eg errgroup.Group
		for range *loadClients {
			eg.Go(func() error {
				for time.Now().Before(end) {
					if err := run(int(number.Add(1))); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(t, eg.Wait())
	})
	t.Logf("%d graphs", number.Load())
	requireIdle(t, bed.daemon, bed.client, before)
}
