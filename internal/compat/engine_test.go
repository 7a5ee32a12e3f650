package compat

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

// TestPassesFormat parses a line that the tests print.
func TestPassesFormat(t *testing.T) {
	t.Parallel()
	m := passes.FindStringSubmatch("    engine_test.go:1: " + fmt.Sprintf(PassesFormat, "base with a secret, child: chained", "v0.29.1", 0, 10) + "\n")
	require.Equal(t, []string{"base with a secret, child: chained", "v0.29.1", "0", "10"}, m[1:])
}

// TestEngineTable writes the part about the engine and the rest in turns. Neither may
// remove the other.
func TestEngineTable(t *testing.T) {
	dir := t.TempDir()
	md := filepath.Join(dir, "table.md")
	tab := &Table{Markdown: md, JSON: filepath.Join(dir, "table.json"), Version: "v1.2.3", Date: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Runs: 3, complete: true}
	tab.set(tableRow{Scenario: "a chain", Client: "buildx v0.9.0", Runs: 3, Passed: map[testbed.Flavor]int{testbed.Graphload: 3}})
	require.NoError(t, tab.write())
	read := func() string {
		dt, err := os.ReadFile(md)
		require.NoError(t, err)
		return string(dt)
	}
	rest := read()

	engine := &EngineTable{
		Engines: map[testbed.Flavor]string{testbed.Upstream: "1.0", testbed.Graphload: "1.0+graphload"}, Date: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Runs: 3, Markdown: md,
		rows: []tableRow{{Scenario: "a chain", Client: "v0.9.0", Passed: map[testbed.Flavor]int{testbed.Upstream: 1, testbed.Graphload: 3}}},
	}
	engine.test("TestEngineCredentials/x").Passed[testbed.Graphload]++
	engine.test("TestEngineStrangers/x").Passed[testbed.Graphload]++
	engine.test("TestEngineStrangers/y")
	for range 2 {
		require.NoError(t, engine.write())
		text := read()
		require.Equal(t, rest, text[:len(rest)])
		require.Contains(t, text, "engine 1.0 and on\n1.0+graphload, by turns, on 2026-01-03: 3 runs")
		require.Contains(t, text, "| scenario | v0.9.0 |\n|---|---|\n| a chain | 1 → 3 |\n")
		require.Contains(t, text, "| TestEngineCredentials/x | 0 → 1 |\n")
		require.Contains(t, text, "| TestEngineStrangers/x | yes |\n| TestEngineStrangers/y | no |\n")
		require.NoError(t, tab.write())
		require.Equal(t, text, read())
	}
}
