package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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
	heap       uint64 // bytes in use after a garbage collection
	records    int    // of the build cache
}

// debugGet reads from the debug handlers of a daemon.
func debugGet(ctx context.Context, d *testbed.Daemon, path string) (string, error) {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.DebugAddr)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://debug"+path, nil)
	if err != nil {
		return "", errors.WithStack(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	return string(dt), errors.WithStack(err)
}

// measure collects garbage and returns what the daemon uses now.
func measure(ctx context.Context, d *testbed.Daemon, c *client.Client) (u usage, err error) {
	if _, err := debugGet(ctx, d, "/debug/gc"); err != nil {
		return u, err
	}
	goroutines, err := debugGet(ctx, d, "/debug/pprof/goroutine?debug=2")
	if err != nil {
		return u, err
	}
	for _, stack := range strings.Split(goroutines, "\n\n") {
		u.goroutines++
		if strings.Contains(stack, "session.(*Manager).handleConn(") {
			u.sessions++
		}
	}
	heap, err := debugGet(ctx, d, "/debug/pprof/heap?debug=1&gc=1")
	if err != nil {
		return u, err
	}
	for sc := bufio.NewScanner(strings.NewReader(heap)); sc.Scan(); {
		fmt.Sscanf(sc.Text(), "# HeapAlloc = %d", &u.heap) //nolint:errcheck // other lines do not match
	}
	if u.heap == 0 {
		return u, errors.New("no heap figure")
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
		require.LessOrEqual(ct, now.heap, before.heap+before.heap/4+(4<<20), "heap")
		require.LessOrEqual(ct, now.records, before.records, "records of the build cache")
	}, time.Minute, 500*time.Millisecond)
	t.Logf("before %+v, after %+v", before, now)
}
