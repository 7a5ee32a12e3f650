package llbsolver

import (
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/graphload"
)

// logLazySolves logs which behavior the daemon has. It returns an error if the
// environment asks for an unknown one.
func logLazySolves() error {
	if err := graphload.Validate(); err != nil {
		return err
	}
	switch {
	case graphload.Ahead():
		bklog.L.Infof("lazy solves are loaded into the build graph, and chained results are evaluated ahead of their client: %s=ahead", graphload.EnvVar)
	case graphload.Enabled():
		bklog.L.Infof("lazy solves are loaded into the build graph, %s=0 switches it off", graphload.EnvVar)
	default:
		bklog.L.Warnf("lazy solves are not loaded into the build graph: %s=0", graphload.EnvVar)
	}
	return nil
}
