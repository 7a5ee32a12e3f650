package graphload

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestValidate(t *testing.T) {
	for _, v := range []string{"", "0", "1", "ahead"} {
		t.Setenv(EnvVar, v)
		require.NoError(t, Validate(), v)
	}
	for _, v := range []string{"true", "false", "2", "Ahead", "ahead ", "on"} {
		t.Setenv(EnvVar, v)
		require.ErrorContains(t, Validate(), "must be 0 (off), 1 (on, the default) or ahead", v)
	}
}
