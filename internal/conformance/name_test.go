package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestName(t *testing.T) {
	t.Parallel()
	for want, opt := range map[string]Options{
		"oci":                     {Worker: "oci", Suites: Suites},
		"containerd-race":         {Worker: "containerd", Suites: Suites, Race: true},
		"oci-frontend_gateway":    {Worker: "oci", Suites: []string{"frontend/gateway"}},
		"oci-TestA_worker_o_d_":   {Worker: "oci", Suites: Suites, Run: "TestA/worker=(o|d)$"},
		"oci-client-solver-race_": {Worker: "oci", Suites: []string{"client", "solver"}, Run: "race?"},
	} {
		require.Equal(t, "v0.34.2-"+want, opt.Name("v0.34.2"))
	}
	require.Len(t, Options{Run: strings.Repeat("x", 1000)}.Name("v0.34.2"), maxName)
}
