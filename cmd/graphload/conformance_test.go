package main

import (
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/conformance"
	"github.com/stretchr/testify/require"
)

func TestConformanceName(t *testing.T) {
	t.Parallel()
	for want, opt := range map[string]conformance.Options{
		"oci":                     {Worker: "oci", Suites: conformance.Suites, Shard: 1, Shards: 1},
		"containerd-race-2of3":    {Worker: "containerd", Suites: conformance.Suites, Race: true, Shard: 2, Shards: 3},
		"oci-frontend_gateway":    {Worker: "oci", Suites: []string{"frontend/gateway"}},
		"oci-TestA_worker_o_d_":   {Worker: "oci", Suites: conformance.Suites, Run: "TestA/worker=(o|d)$"},
		"oci-client-solver-race_": {Worker: "oci", Suites: []string{"client", "solver"}, Run: "race?"},
	} {
		require.Equal(t, "v0.34.2-"+want, conformanceName("v0.34.2", opt))
	}
	require.Len(t, conformanceName("v0.34.2", conformance.Options{Run: strings.Repeat("x", 1000)}), maxName)
}

func TestParseShard(t *testing.T) {
	t.Parallel()
	shard, shards, err := parseShard("")
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{shard, shards})
	shard, shards, err = parseShard("2/3")
	require.NoError(t, err)
	require.Equal(t, []int{2, 3}, []int{shard, shards})
	for _, s := range []string{"2", "0/3", "4/3", "a/3", "1/b"} {
		_, _, err := parseShard(s)
		require.ErrorContains(t, err, "is not I/N")
	}
}
