package integration

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// TestForcedEvaluation solves a Dockerfile for four platforms with Evaluate set. The refs
// of the result are evaluated at the same time, and the first failure cancels the
// others.
func TestForcedEvaluation(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	c := newClient(t, d)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	fs, err := fsutil.NewFS(dir)
	require.NoError(t, err)

	// solve returns how long the solve took, and when a step failed
	solve := func(run string) (took time.Duration, failed time.Time, returned time.Time, err error) {
		dockerfile := "FROM scratch\nCOPY bin /bin\nARG TARGETPLATFORM\nRUN --mount=type=cache,id=" + identity.NewID() + ",target=/met " + run + "\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
		ch := make(chan *client.SolveStatus)
		var wg sync.WaitGroup
		wg.Go(func() {
			for st := range ch {
				for _, v := range st.Vertexes {
					if v.Error != "" && v.Completed != nil && (failed.IsZero() || v.Completed.Before(failed)) {
						failed = *v.Completed
					}
				}
			}
		})
		_, err = c.Build(t.Context(), client.SolveOpt{
			LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			start := time.Now()
			res, err := gc.Solve(ctx, gateway.SolveRequest{
				Evaluate:    true,
				Frontend:    "dockerfile.v0",
				FrontendOpt: map[string]string{"platform": "linux/amd64,linux/amd64/v2,linux/386,linux/arm64"},
			})
			returned = time.Now()
			took = returned.Sub(start)
			return res, err
		}, ch)
		wg.Wait()
		return took, failed, returned, err
	}

	_, _, _, err = solve("true") // copies the files
	require.NoError(t, err)
	// each step waits until all four are running
	met, _, _, err := solve(`mkdir -p /met/$TARGETPLATFORM/here; for i in $(seq 600); do [ $(ls -d /met/linux/*/here /met/linux/*/*/here 2>/dev/null | wc -l) = 4 ] && exit; sleep 0.1; done; false`)
	require.NoError(t, err, "the refs are evaluated one after the other")
	t.Logf("four refs that wait for each other took %s", met)

	took, failed, returned, err := solve(`if [ $TARGETPLATFORM = linux/arm64 ]; then sleep 1; false; else sleep 600; fi`)
	require.Error(t, err)
	t.Logf("returned %s after the failure, %s in all", returned.Sub(failed), took)
	require.False(t, failed.IsZero())
	require.Less(t, returned.Sub(failed), allowance(met, 2, 2*time.Second))
	require.Less(t, took, 5*time.Minute, "the others are not canceled")
}
