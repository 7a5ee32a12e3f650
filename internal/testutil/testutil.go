// Package testutil has functions that tests of several packages share.
package testutil

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Require skips the test if err says what this machine lacks to run it. In CI, which
// must have everything, it fails the test.
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

// RequireCommand returns the path of a command that the test needs. If it is missing,
// RequireCommand skips or fails the test as Require does.
func RequireCommand(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	Require(t, err)
	return path
}
