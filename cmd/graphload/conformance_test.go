package main

import (
	"testing"

	"github.com/graphload/graphload/internal/conformance"
	"github.com/stretchr/testify/require"
)

func TestConformanceName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "v0.34.2-oci", conformanceName("v0.34.2", false, conformance.Options{Worker: "oci", Shard: 1, Shards: 1}))
	require.Equal(t, "v0.33.1-containerd-race-2of3", conformanceName("v0.33.1", true, conformance.Options{Worker: "containerd", Shard: 2, Shards: 3}))
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
