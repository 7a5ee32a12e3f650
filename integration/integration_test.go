// Package integration has the end-to-end tests: a buildkitd as a process, and
// clients that nobody changed.
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

// subject is the daemon of tests that can run on either.
func subject() testbed.Flavor {
	return testbed.Flavor(*subjectFlavor)
}

// requireTestbed skips the test with the reason when this machine cannot run
// it, and fails it in CI, where it must.
func requireTestbed(t *testing.T) {
	t.Helper()
	testutil.Require(t, testbed.Check())
}

// newDaemon starts a daemon for the test. When the test fails the end of its
// log is printed, and all of it is kept if testbed.LogsEnv names a folder.
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
