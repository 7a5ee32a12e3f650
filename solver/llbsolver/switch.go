package llbsolver

import (
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/graphload"
)

// logLazySolves says at start which of the two behaviours the daemon has.
func logLazySolves() {
	if graphload.Enabled() {
		bklog.L.Infof("lazy solves are loaded into the build graph, %s=0 switches it off", graphload.EnvVar)
		return
	}
	bklog.L.Warnf("lazy solves are not loaded into the build graph: %s=0", graphload.EnvVar)
}
