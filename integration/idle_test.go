package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// usage is what builds must give back when they end.
type usage struct {
	goroutines int
	sessions   int
	heap       float64 // bytes in use after a garbage collection
	records    int     // of the build cache
}

// measure collects garbage and returns what the daemon uses now.
func measure(ctx context.Context, d *testbed.Daemon, c *client.Client) (u usage, err error) {
	if u.heap, err = d.Heap(ctx); err != nil {
		return u, err
	}
	goroutines, err := d.Debug(ctx, "/debug/pprof/goroutine?debug=2")
	if err != nil {
		return u, err
	}
	for _, stack := range strings.Split(goroutines, "\n\n") {
		u.goroutines++
		if strings.Contains(stack, "session.(*Manager).handleConn(") {
			u.sessions++
		}
	}
	records, err := c.DiskUsage(ctx)
	if err != nil {
		return u, errors.WithStack(err)
	}
	u.records = len(records)
	return u, nil
}

// requireIdle waits until the daemon uses no more than before. What is freed
// when a build ends is freed a little later than its client returns.
func requireIdle(t *testing.T, d *testbed.Daemon, c *client.Client, before usage) {
	t.Helper()
	var now usage
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		require.NoError(ct, c.Prune(t.Context(), nil, client.PruneAll))
		var err error
		now, err = measure(t.Context(), d, c)
		require.NoError(ct, err)
		require.LessOrEqual(ct, now.goroutines, before.goroutines+5, "goroutines")
		require.LessOrEqual(ct, now.sessions, before.sessions, "sessions")
		require.LessOrEqual(ct, now.heap, before.heap*1.25+(4<<20), "heap")
		require.LessOrEqual(ct, now.records, before.records, "records of the build cache")
	}, time.Minute, 500*time.Millisecond)
	t.Logf("before %+v, after %+v", before, now)
}
