package solver

import (
	"context"
	"sync/atomic"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

// ChainStats counts what builds own and lend to each other. Lookups are requests for a
// secret, a login and so on, by steps to which a session is lent. Requests of other
// steps are not counted.
type ChainStats struct {
	Definitions int64 // registered since the solver was created
	Owned       int64 // vertices, once for each job that owns them
	Chained     int64 // pairs of a job and its base

	AnsweredByBase  int64 // lookups that a lent session answered
	AnsweredByBuild int64 // lookups that a build of the step answered
	Unanswered      int64
}

// lookupCounts are the lookups since the solver was created.
type lookupCounts struct {
	byBase, byBuild, unanswered atomic.Int64
	observer                    atomic.Pointer[func(context.Context, int)]
}

// ChainStats returns the current statistics.
func (jl *Solver) ChainStats() ChainStats {
	c := &jl.chains
	st := ChainStats{
		Definitions:     int64(c.seq.Load()),
		AnsweredByBase:  c.lookups.byBase.Load(),
		AnsweredByBuild: c.lookups.byBuild.Load(),
		Unanswered:      c.lookups.unanswered.Load(),
	}
	for _, j := range jl.activeJobs() {
		j.owner.mu.RLock()
		st.Owned += int64(len(j.owner.vertices))
		j.owner.mu.RUnlock()
		st.Chained += int64(len(j.bases()))
	}
	return st
}

// ObserveLookups sets the function that is called after each lookup, with the number
// of sessions that were asked.
func (jl *Solver) ObserveLookups(f func(context.Context, int)) {
	jl.chains.lookups.observer.Store(&f)
}

var _ session.LookupObserver = (*stateSessions)(nil)

// LookupDone implements session.LookupObserver.
func (it *stateSessions) LookupDone(ctx context.Context, asked int, answered, lent bool) {
	counts := &it.state.solver.chains.lookups
	switch {
	case !answered:
		counts.unanswered.Add(1)
	case lent:
		counts.byBase.Add(1)
	default:
		counts.byBuild.Add(1)
	}
	if f := counts.observer.Load(); f != nil {
		(*f)(ctx, asked)
	}
}

// logChained logs that j is chained on base, and the result that chains it.
func logChained(j, base *Job, result []byte) {
	if !bklog.L.Logger.IsLevelEnabled(logrus.DebugLevel) {
		return // do not compute the digest
	}
	bklog.L.
		WithField("job", j.id).
		WithField("base", base.id).
		WithField("result", digest.FromBytes(result)).
		Debug("job is chained on another")
}
