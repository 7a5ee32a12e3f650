package compat

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	dir := t.TempDir()
	md, js := filepath.Join(dir, "table.md"), filepath.Join(dir, "table.json")
	row := func(client string, upstream, graphload int) tableRow {
		return tableRow{Scenario: "a chain", Client: client, Runs: 3, Passed: map[testbed.Flavor]int{testbed.Upstream: upstream, testbed.Graphload: graphload}}
	}
	tab := &Table{Markdown: md, JSON: js, Version: "v1.2.3", Date: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Runs: 3, programs: []string{"runc version 1"}}
	tab.set(row("buildx v0.9.0", 1, 2))
	tab.set(row("buildx v0.10.0", 0, 3))
	tab.set(tableRow{Scenario: "TestOrders/x", Client: goClient, Runs: 3, Passed: map[testbed.Flavor]int{testbed.Graphload: 3}})
	tab.set(tableRow{Scenario: "TestStrangers/x", Client: beside, Runs: 1, Passed: map[testbed.Flavor]int{testbed.Upstream: 1, testbed.Graphload: 1}})
	tab.set(tableRow{Scenario: "TestStrangers/y", Client: beside, Runs: 1, Passed: map[testbed.Flavor]int{}})
	require.NoError(t, tab.write())

	next := &Table{Markdown: md, JSON: js, Version: "v1.2.3", Runs: 3, programs: tab.programs}
	require.NoError(t, next.read())
	require.Equal(t, tab.rows, next.rows)
	require.Contains(t, next.markdown(), "**Not complete:**")
	next.Date, next.complete = time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), true
	next.set(row("buildx v0.9.0", 1, 3))
	require.Len(t, next.rows, 5)
	text := next.markdown()
	require.Contains(t, text, "| scenario | v0.9.0 | v0.10.0 |\n|---|---|---|\n| a chain | 1 → 3 | 0 → 3 |\n")
	require.Contains(t, text, "| TestOrders/x | 0 → 3 |\n")
	require.Contains(t, text, "| TestStrangers/x | yes |\n| TestStrangers/y | no |\n")
	require.Contains(t, text, "on 2026-01-02, 2026-01-03: 3 runs")
	require.Contains(t, text, "\n- runc version 1\n")
	require.NotContains(t, text, "Not complete")

	other := &Table{Markdown: md, JSON: js, Version: "v1.2.3", Runs: 4}
	require.ErrorContains(t, other.read(), "has 3 runs with BuildKit v1.2.3, not 4 with v1.2.3: run all scenarios")

	newer := &Table{Markdown: md, JSON: js, Version: "v1.2.3", Runs: 3, programs: []string{"runc version 2"}}
	require.ErrorContains(t, newer.read(), `was made with ["runc version 1"], not ["runc version 2"]: run all scenarios`)
}
