package integration

import (
	"slices"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

// TestBake runs the loops of the tables with a buildx that orders nothing itself, and
// with the one that relies on the daemon.
func TestBake(t *testing.T) {
	requireTestbed(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	for _, version := range []string{"v0.29.1", testbed.PatchedBuildx} {
		b := newBuilderOf(t, version, d)
		for _, loop := range slices.Concat(testbed.Matrix, testbed.Timed) {
			t.Run(version+"/"+loop.Name, func(t *testing.T) {
				if loop.NeedsDocker && version == testbed.PatchedBuildx {
					t.Skip("compose brings a buildx of its own")
				}
				bakeTwice(t, loop, b)
			})
		}
	}
}

func bakeTwice(t *testing.T, loop testbed.Loop, b *testbed.Builder) {
	t.Helper()
	if loop.NeedsDocker {
		requireDocker(t)
	}
	p, err := testbed.NewProject(t.Context(), loop)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	for range 2 {
		require.NoError(t, p.Run(t.Context(), b))
	}
}

// TestSwitchedOff has the daemon behave as upstream's: the loop that never
// passes there does not pass here either.
func TestSwitchedOff(t *testing.T) {
	requireTestbed(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=0"}})
	b := newBuilderOf(t, "v0.29.1", d)
	loops, err := testbed.FindLoops([]string{"ssh"})
	require.NoError(t, err)
	p, err := testbed.NewProject(t.Context(), loops[0])
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })

	failed := 0
	for range 5 {
		if p.Run(t.Context(), b) != nil {
			failed++
		}
	}
	require.NotZero(t, failed)
	require.Contains(t, d.LogTail(-1), "lazy solves are not loaded into the build graph")
}
