package fuzz

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestFailingInputs runs a target in a tree that fails. After the tree has been written
// again, the input must still exist and run first.
func TestFailingInputs(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles what it runs with instrumentation")
	}
	t.Parallel()
	root := t.TempDir()
	tree := filepath.Join(root, "build", "v1")
	target := Target{Name: "FuzzBroken", Tree: true, Pkg: "./pkg"}
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "pkg"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "go.mod"), []byte("module broken\n\ngo 1.26\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "pkg", "broken_test.go"), []byte(`package pkg

import "testing"

func FuzzBroken(f *testing.F) {
	f.Add(1000)
	f.Fuzz(func(t *testing.T, n int) {
		if n > 1000 {
			t.Fatal(n)
		}
	})
}
`), 0o600))

	err := Run(t.Context(), target, root, tree, time.Minute)
	failing := filepath.Join(root, "build", "fuzz", "FuzzBroken")
	require.ErrorContains(t, err, "inputs that fail are in "+failing+", and graphload fuzz --target FuzzBroken --time 1s runs them again")
	inputs, err := os.ReadDir(failing)
	require.NoError(t, err)
	require.Len(t, inputs, 1)

	// as a command does that writes the tree and removes other files from it
	require.NoError(t, os.Remove(filepath.Join(tree, "pkg", "testdata", "fuzz", "FuzzBroken")))
	require.FileExists(t, filepath.Join(failing, inputs[0].Name()))
	require.ErrorContains(t, Run(t.Context(), target, root, tree, time.Second), "inputs that fail are in "+failing)
}
