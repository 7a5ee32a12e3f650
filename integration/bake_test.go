package integration

import (
	"slices"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

// TestBake runs the scenarios of the tables with a buildx that does not order targets, and
// with the patched one, which relies on the daemon.
func TestBake(t *testing.T) {
	requireTestbed(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	for _, version := range []string{"v0.29.1", testbed.PatchedBuildx} {
		b := newBuilderOf(t, version, d)
		for _, scenario := range slices.Concat(testbed.Scenarios, testbed.Timed) {
			t.Run(version+"/"+scenario.Name, func(t *testing.T) {
				if scenario.NeedsDocker && version == testbed.PatchedBuildx {
					t.Skip("compose has its own buildx")
				}
				bakeTwice(t, scenario, b)
			})
		}
	}
}

func bakeTwice(t *testing.T, scenario testbed.Scenario, b *testbed.Builder) {
	t.Helper()
	if scenario.NeedsDocker {
		requireDocker(t)
	}
	p, err := testbed.NewProject(t.Context(), scenario)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	for range 2 {
		require.NoError(t, p.Run(t.Context(), b))
	}
}

// TestSwitchedOff makes the daemon behave as upstream's: the scenario that never passes
// there does not pass here either.
func TestSwitchedOff(t *testing.T) {
	requireTestbed(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=0"}})
	b := newBuilderOf(t, "v0.29.1", d)
	scenarios, err := testbed.FindScenarios([]string{"ssh"})
	require.NoError(t, err)
	p, err := testbed.NewProject(t.Context(), scenarios[0])
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
