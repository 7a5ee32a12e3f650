package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

func TestDaemon(t *testing.T) {
	for _, flavor := range testbed.Flavors {
		for _, snapshotter := range []string{"overlayfs", "native"} {
			t.Run(string(flavor)+"/"+snapshotter, func(t *testing.T) {
				d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Snapshotter: snapshotter})
				c := newClient(t, d)

				info, err := c.Info(t.Context())
				require.NoError(t, err)
				if flavor == testbed.Graphload {
					require.Contains(t, info.BuildkitVersion.Version, "+graphload")
				} else {
					require.NotContains(t, info.BuildkitVersion.Version, "+graphload")
				}
				workers, err := c.ListWorkers(t.Context())
				require.NoError(t, err)
				require.Len(t, workers, 1)
				require.Equal(t, snapshotter, workers[0].Labels["org.mobyproject.buildkit.worker.snapshotter"])
			})
		}
	}
}

// TestDaemonKilled checks that a killed daemon can be closed, and that the next daemon on
// its root answers.
func TestDaemonKilled(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Root: root})
	require.NoError(t, d.Signal(syscall.SIGKILL))
	<-d.Done()
	require.NoError(t, d.Close())
	require.NoDirExists(t, filepath.Dir(d.DebugAddr))

	d = newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Root: root})
	_, err := newClient(t, d).Info(t.Context())
	require.NoError(t, err)
}

func TestDaemonDoesNotStart(t *testing.T) {
	requireTestbed(t)
	_, err := testbed.StartDaemon(t.Context(), testbed.DaemonOptions{
		Flavor: testbed.Graphload,
		Config: "no table",
	})
	require.ErrorContains(t, err, "failed to start the graphload daemon: ")
}

// TestDaemonKilledInStep checks that a step does not outlive a daemon that could not stop
// it.
func TestDaemonKilledInStep(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	c := newClient(t, d)

	rootfs := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(rootfs))
	base := llb.Scratch().File(llb.Copy(llb.Local("rootfs"), "/", "/"))
	script := "echo started; sleep 1000 # " + identity.NewID()
	def, err := base.Run(llb.Args([]string{"/bin/sh", "-c", script})).Marshal(t.Context())
	require.NoError(t, err)
	src, err := fsutil.NewFS(rootfs)
	require.NoError(t, err)

	ch := make(chan *client.SolveStatus)
	done := make(chan error, 1)
	go func() {
		_, err := c.Solve(t.Context(), def, client.SolveOpt{LocalMounts: map[string]fsutil.FS{"rootfs": src}}, ch)
		done <- err
	}()
	started := false
	for st := range ch {
		if !started && len(st.Logs) > 0 {
			started = true
			require.NoError(t, d.Signal(syscall.SIGKILL))
		}
	}
	require.Error(t, <-done)
	require.True(t, started, "the step did not run")
	<-d.Done()
	require.NoError(t, d.Close())
	require.Empty(t, processesOf(t, script))
}

// processesOf returns the command lines that contain s.
func processesOf(t *testing.T, s string) []string {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, path := range paths {
		// the process may have ended since
		if dt, _ := os.ReadFile(path); strings.Contains(string(dt), s) {
			found = append(found, path+": "+string(dt))
		}
	}
	return found
}
