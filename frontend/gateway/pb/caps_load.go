package moby_buildkit_v1_frontend //nolint:staticcheck

import (
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/graphload"
)

// CapGatewaySolveLoad says that a lazy solve is loaded: when Solve returns, the
// LLB of its refs is loaded and registered for the duration of the build request,
// and the session of the build serves the builds that are chained on the result.
// Clients do not need to order evaluations themselves.
const CapGatewaySolveLoad apicaps.CapID = "gateway.solve.load"

func init() {
	// A capability that is switched off is not listed at all, for clients that
	// look for its id only.
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
