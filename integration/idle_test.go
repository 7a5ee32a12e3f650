package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// usage is what builds use and must release when they end.
type usage struct {
	goroutines int
	most       int // highest number of goroutines, if it was watched
	sessions   int
	heap       float64 // bytes in use after a garbage collection
	records    int     // of the build cache
	leases     int     // of the worker
	builds     int     // in the graph
	steps      int     // in the graph, built or owned
}

// measure collects garbage, and returns what the daemon uses now.
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
	g, err := readGraph(ctx, d)
	if err != nil {
		return u, err
	}
	u.builds, u.steps = len(g.Builds), len(g.Steps)
	u.leases, err = countLeases(filepath.Join(d.Root, "runc-overlayfs", "containerdmeta.db"))
	return u, err
}

// readGraph returns the active graph of a daemon.
func readGraph(ctx context.Context, d *testbed.Daemon) (g debugGraph, err error) {
	dt, err := d.Debug(ctx, "/debug/graph")
	if err != nil {
		return g, err
	}
	return g, errors.WithStack(json.Unmarshal([]byte(dt), &g))
}

// goroutineSize is the memory that the Go runtime keeps for reuse when a goroutine ends:
// runtime.malg in a heap profile. It never frees this memory.
const goroutineSize = 512 // bytes

// mostGoroutines returns the highest number of goroutines of the daemon during load.
func mostGoroutines(t *testing.T, d *testbed.Daemon, load func()) (most int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			profile, err := d.Debug(ctx, "/debug/pprof/goroutine?debug=1")
			if err != nil && ctx.Err() == nil {
				watched <- err
				return
			}
			var n int
			_, _ = fmt.Sscanf(profile, "goroutine profile: total %d", &n)
			most = max(most, n)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		watched <- nil
	}()
	load()
	cancel()
	require.NoError(t, <-watched)
	return most
}

// countLeases reads a copy of the database of a worker, because the daemon has locked the
// file. If the daemon writes during the copy, countLeases fails or misses leases.
func countLeases(path string) (n int, err error) {
	dt, err := os.ReadFile(path)
	if err != nil {
		return 0, errors.WithStack(err)
	}
	f, err := os.CreateTemp("", "graphload-leases-")
	if err != nil {
		return 0, errors.WithStack(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(dt)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, errors.WithStack(err)
	}
	db, err := bolt.Open(f.Name(), 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return 0, errors.WithStack(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		// buckets of containerd's metadata: version, namespace, kind of object
		version := tx.Bucket([]byte("v1"))
		if version == nil {
			return errors.Errorf("%s is not metadata of containerd", path)
		}
		return version.ForEachBucket(func(namespace []byte) error {
			if bytes.HasSuffix(namespace, []byte("_history")) {
				return nil // a lease of builds that have ended
			}
			if leases := version.Bucket(namespace).Bucket([]byte("leases")); leases != nil {
				return leases.ForEachBucket(func([]byte) error { n++; return nil })
			}
			return nil
		})
	})
	return n, errors.WithStack(err)
}

// logUsage logs what a daemon has not released.
func logUsage(t *testing.T, d *testbed.Daemon, c *client.Client) {
	records, err := c.DiskUsage(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Log(err)
	}
	for _, r := range records {
		t.Logf("record %s of %v, in use %t, used %d times, created %s: %s", r.ID, r.Parents, r.InUse, r.UsageCount, r.CreatedAt.Format(time.TimeOnly), r.Description)
	}
	g, err := readGraph(context.WithoutCancel(t.Context()), d)
	t.Logf("graph: %+v %v", g, err)
	if dir := os.Getenv(testbed.LogsEnv); dir != "" {
		profile, err := d.Debug(context.WithoutCancel(t.Context()), "/debug/pprof/heap?gc=1")
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, t.Name()+".heap.pprof"), []byte(profile), 0o600)
		}
		if err != nil {
			t.Log(err)
		}
	}
}

// idleTimeout is how long a daemon may take to release what builds used: it drops the
// spans of a build one to two minutes after the last one.
const idleTimeout = 3 * time.Minute

// requireIdle waits until the daemon uses no more than before. The daemon releases what a
// build used a little after its client returns.
func requireIdle(t *testing.T, d *testbed.Daemon, c *client.Client, before usage) {
	t.Helper()
	defer func() {
		if t.Failed() {
			logUsage(t, d, c)
		}
	}()
	var now usage
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		require.NoError(ct, c.Prune(t.Context(), nil, client.PruneAll))
		var err error
		now, err = measure(t.Context(), d, c)
		require.NoError(ct, err)
		require.LessOrEqual(ct, now.goroutines, before.goroutines+5, "goroutines")
		require.LessOrEqual(ct, now.sessions, before.sessions, "sessions")
		require.LessOrEqual(ct, now.heap, before.heap*1.25+(4<<20)+float64(goroutineSize*before.most), "heap")
		require.LessOrEqual(ct, now.records, before.records, "records of the build cache")
		require.LessOrEqual(ct, now.leases, before.leases, "leases")
		require.LessOrEqual(ct, now.builds, before.builds, "builds in the graph")
		require.LessOrEqual(ct, now.steps, before.steps, "steps in the graph")
	}, idleTimeout, 500*time.Millisecond)
	t.Logf("before %+v, after %+v", before, now)
}
