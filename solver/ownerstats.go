package solver

import (
	"context"
	"sync/atomic"

	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

// OwnerStats are what owners did since the solver was created.
type OwnerStats struct {
	Registered int64 // definitions of lazy solves that were registered
	Refused    int64 // those that were not, see Job.Refuse
	Owned      int64 // vertices that have owners now

	// lookups are requests of a step to its sessions, for a secret for example
	AnsweredByBuild int64 // by the session of a build that builds the step
	AnsweredByOwner int64 // by that of an owner that does not
	Unanswered      int64
}

// ownerCounts are the counters behind OwnerStats.
type ownerCounts struct {
	registered, refused          atomic.Int64
	byBuild, byOwner, unanswered atomic.Int64
	observer                     atomic.Pointer[func(context.Context, int)]
}

// OwnerStats returns the counters of this moment.
func (jl *Solver) OwnerStats() OwnerStats {
	o := &jl.owners
	o.mu.RLock()
	owned := len(o.owners)
	o.mu.RUnlock()
	return OwnerStats{
		Registered:      o.counts.registered.Load(),
		Refused:         o.counts.refused.Load(),
		Owned:           int64(owned),
		AnsweredByBuild: o.counts.byBuild.Load(),
		AnsweredByOwner: o.counts.byOwner.Load(),
		Unanswered:      o.counts.unanswered.Load(),
	}
}

// ObserveLookups has f called after each lookup with the number of sessions
// that were asked.
func (jl *Solver) ObserveLookups(f func(context.Context, int)) {
	jl.owners.counts.observer.Store(&f)
}

// LookupDone implements session.LookupObserver.
func (g *sessionGroup) LookupDone(ctx context.Context, asked int, answered string) {
	counts := &g.solver.owners.counts
	switch {
	case answered == "":
		counts.unanswered.Add(1)
	case g.hasSession(answered):
		counts.byBuild.Add(1)
	default:
		counts.byOwner.Add(1)
	}
	if f := counts.observer.Load(); f != nil {
		(*f)(ctx, asked)
	}
}

// hasSession reports if a job that builds the state has the session, or one
// that builds a parent of it.
func (s *state) hasSession(id string) bool {
	s.solver.mu.RLock()
	defer s.solver.mu.RUnlock()

	visited := map[*state]struct{}{}
	var has func(*state) bool
	has = func(s *state) bool {
		if _, ok := visited[s]; ok {
			return false
		}
		visited[s] = struct{}{}
		s.mu.RLock()
		for j := range s.jobs {
			if j.SessionID == id {
				s.mu.RUnlock()
				return true
			}
		}
		s.mu.RUnlock()
		for dgst := range s.parents {
			if parent, ok := s.solver.actives[dgst]; ok && has(parent) {
				return true
			}
		}
		return false
	}
	return has(s)
}

// Refuse notes that a lazy solve of the job is not registered, because its
// definition cannot be loaded or the job has ended.
func (j *Job) Refuse(ctx context.Context, err error) {
	j.list.owners.counts.refused.Add(1)
	if logsOwners() {
		bklog.G(ctx).WithError(err).WithField("job", j.id).Debug("lazy solve not registered")
	}
}

// noteRegistered counts a registration. v is the vertex of its result, if that
// is new to the job.
func (j *Job) noteRegistered(ctx context.Context, v digest.Digest, err error) {
	if err != nil {
		return
	}
	o := &j.list.owners
	o.counts.registered.Add(1)
	if v != "" && logsOwners() {
		bklog.G(ctx).
			WithField("job", j.id).
			WithField("vertex", v).
			WithField("owner", ownerIDs(o.lookup(v))).
			Debug("registered vertex and its ancestors")
	}
}

// logInherited logs that the owners of src were handed to dst.
func logInherited(dst, src *state, owners []*registration) {
	if len(owners) == 0 || !logsOwners() {
		return
	}
	jobs := make([]string, 0, len(src.jobs))
	for j := range src.jobs {
		jobs = append(jobs, j.id)
	}
	bklog.L.
		WithField("job", jobs).
		WithField("vertex", dst.vtx.Digest()).
		WithField("merged_vertex", src.vtx.Digest()).
		WithField("owner", ownerIDs(owners)).
		Debug("merged owners")
}

// logReleased logs that j owns the vertices, of which the first is the result
// that it registered last, no longer.
func logReleased(j *Job, vertices []digest.Digest, orphans []*state) {
	if len(vertices) == 0 || !logsOwners() {
		return
	}
	bklog.L.
		WithField("job", j.id).
		WithField("vertex", vertices[0]).
		WithField("owner", ownerIDs(j.list.owners.lookup(vertices[0]))).
		WithField("vertices", len(vertices)).
		WithField("orphans", len(orphans)).
		Debug("discarded owner")
}

// logsOwners reports if debug messages are written, so that nothing is
// prepared for them otherwise.
func logsOwners() bool {
	return bklog.L.Logger.IsLevelEnabled(logrus.DebugLevel)
}

func ownerIDs(regs []*registration) []string {
	ids := make([]string, 0, len(regs))
	for _, reg := range regs {
		ids = append(ids, reg.job.id)
	}
	return ids
}
