// Package integration has the end-to-end tests: a buildkitd as a process, and unmodified
// clients.
package integration

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var subjectFlavor = flag.String("flavor", string(testbed.Graphload), "daemon of the random graphs and of other tests of the Go client: upstream or graphload")

// subject is the daemon of tests that can run on either daemon.
func subject() testbed.Flavor {
	return testbed.Flavor(*subjectFlavor)
}

// requireTestbed skips the test with the reason if this machine cannot run it. In CI, the
// test fails instead.
func requireTestbed(t *testing.T) {
	t.Helper()
	testutil.Require(t, testbed.Check())
}

// newDaemon starts a daemon for the test. If the test fails, newDaemon prints the end of
// the daemon's log, and keeps the whole log if testbed.LogsEnv names a folder.
func newDaemon(t *testing.T, opt testbed.DaemonOptions) *testbed.Daemon {
	t.Helper()
	requireTestbed(t)
	d, err := testbed.StartDaemon(t.Context(), opt)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of the %s daemon:\n%s", d.Flavor, d.LogTail(60))
			if dir := os.Getenv(testbed.LogsEnv); dir != "" {
				name := strings.ReplaceAll(t.Name(), "/", "-") + "-" + string(d.Flavor) + ".log"
				assert.NoError(t, d.SaveLog(filepath.Join(dir, name)))
			}
		}
		require.NoError(t, d.Close())
	})
	return d
}

// newClient connects to the daemon for the test.
func newClient(t *testing.T, d *testbed.Daemon) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), d.Addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
