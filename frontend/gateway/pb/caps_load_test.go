package moby_buildkit_v1_frontend //nolint:staticcheck

import (
	"os"
	"os/exec"
	"testing"

	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/graphload"
	"github.com/stretchr/testify/require"
)

func TestCapGatewaySolveLoad(t *testing.T) {
	caps := Caps.CapSet(Caps.All())
	if os.Getenv(graphload.EnvVar) == "0" {
		require.False(t, caps.Contains(CapGatewaySolveLoad))
		require.Error(t, caps.Supports(CapGatewaySolveLoad))
		return
	}
	require.True(t, caps.Contains(CapGatewaySolveLoad))
	require.NoError(t, caps.Supports(CapGatewaySolveLoad))

	others := Caps.CapSet([]*apicaps.PBCap{{ID: string(CapGatewayEvaluate), Enabled: true}})
	require.Error(t, others.Supports(CapGatewaySolveLoad), "a daemon that does not list the capability does not have it")

	// switched off: the environment is read when the process starts
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCapGatewaySolveLoad$", "-test.v") //nolint:gosec // this test itself
	cmd.Env = append(os.Environ(), graphload.EnvVar+"=0")
	dt, err := cmd.CombinedOutput()
	require.NoError(t, err, string(dt))
	require.Contains(t, string(dt), "--- PASS: TestCapGatewaySolveLoad")
}
