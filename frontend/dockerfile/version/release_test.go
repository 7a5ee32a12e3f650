package version

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReleaseOf(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"v0.34.2":           "v0.34.2",
		"v0.34.2+graphload": "v0.34.2",
		"v0.34.2+other":     "v0.34.2+other",
		"v0.35.0-rc1":       "v0.35.0-rc1",
	} {
		require.Equal(t, want, releaseOf(in))
	}
}
