package cache

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

func newTestManager(t *testing.T) (context.Context, Manager) {
	ctx := namespaces.WithNamespace(t.Context(), "buildkit-test")
	co, cleanup, err := newCacheManager(ctx, t, cmOpt{})
	require.NoError(t, err)
	t.Cleanup(cleanup)
	return ctx, co.manager
}

// newCommitted returns a ref that has been committed and not finalized.
func newCommitted(ctx context.Context, t *testing.T, cm Manager) ImmutableRef {
	mutable, err := cm.New(ctx, nil, nil, CachePolicyRetain)
	require.NoError(t, err)
	ref, err := mutable.Commit(ctx)
	require.NoError(t, err)
	return ref
}

// TestGetWhileFinalizing stops in the middle of Finalize, where the writable half of
// the record is dead and not yet dropped.
func TestGetWhileFinalizing(t *testing.T) {
	t.Parallel()
	ctx, cm := newTestManager(t)

	ref := newCommitted(ctx, t, cm)
	rec := ref.(*immutableRef).cacheRecord

	rec.mu.Lock()
	writable := rec.equalMutable
	writable.dead = true
	got := make(chan error, 1)
	go func() {
		other, err := cm.Get(ctx, ref.ID(), nil)
		if err == nil {
			err = other.Release(ctx)
		}
		got <- err
	}()
	select {
	case err := <-got:
		rec.mu.Unlock()
		t.Fatalf("got a record that is being finalized: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	writable.dead = false
	rec.mu.Unlock()
	require.NoError(t, <-got)
	require.NoError(t, ref.Release(ctx))
}

// TestGetAndFinalize is for the race detector. Get takes the lock that Finalize holds
// while it writes, so both see a consistent record.
func TestGetAndFinalize(t *testing.T) {
	t.Parallel()
	ctx, cm := newTestManager(t)

	for range 100 {
		ref := newCommitted(ctx, t, cm)

		var eg errgroup.Group
		eg.Go(func() error { return ref.Finalize(ctx) })
		for range 3 {
			eg.Go(func() error {
				other, err := cm.Get(ctx, ref.ID(), nil)
				if err != nil {
					return err
				}
				return other.Release(ctx)
			})
		}
		require.NoError(t, eg.Wait())
		require.NoError(t, ref.Release(ctx))
	}
}
