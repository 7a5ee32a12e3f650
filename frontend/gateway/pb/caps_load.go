package moby_buildkit_v1_frontend //nolint:staticcheck

import (
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/graphload"
)

// CapGatewaySolveLoad says that the daemon loads lazy solves: when Solve returns, the
// LLB of its refs is loaded and registered for the duration of the build request,
// and the session of the build serves the builds that are chained on the result.
// Clients do not need to order evaluations.
const CapGatewaySolveLoad apicaps.CapID = "gateway.solve.load"

func init() {
	// If the change is switched off, do not list the capability at all: some clients
	// only look for its id.
	if !graphload.Enabled() {
		return
	}
	Caps.Init(apicaps.Cap{
		ID:      CapGatewaySolveLoad,
		Name:    "gateway load lazy solve",
		Enabled: true,
		Status:  apicaps.CapStatusExperimental,
	})
}
