// Package testutil is what tests of several packages share.
package testutil

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Require skips the test when err says what this machine lacks to run it. It
// fails the test in CI, which must have everything.
func Require(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		require.NoError(t, err)
	}
	t.Skip(err)
}

// RequireCommand returns the path of a command that the test needs, as Require
// does.
func RequireCommand(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	Require(t, err)
	return path
}
