package fuzz

import (
	"testing"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	opt := assemble.Options{Root: root}
	targets, err := Targets(opt, nil)
	require.NoError(t, err)
	require.Equal(t, []Target{{Name: "FuzzParse", Pkg: "./internal/seam"}, {Name: "FuzzApply", Pkg: "./internal/seam"}}, targets)
	targets, err = Targets(opt, []string{"FuzzApply"})
	require.NoError(t, err)
	require.Len(t, targets, 1)
	_, err = Targets(opt, []string{"FuzzNope"})
	require.EqualError(t, err, `no fuzz target "FuzzNope", there are [FuzzParse FuzzApply]`)
}
