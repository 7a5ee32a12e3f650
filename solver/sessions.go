package solver

import (
	"maps"
	"slices"

	"github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
)

// NextSession returns the sessions that can serve the vertex, one at a time
// and each once, and the empty string when there is no other: the owners of
// the vertex by registration, then the jobs that build it by start, then the
// same for the parents of a nested build. Jobs that have ended are left out while
// another one builds the vertex. The order does not depend on who asks or how
// often, so a value that several sessions offer is taken from the same one every
// time.
func (g *sessionGroup) NextSession() string {
	for {
		for len(g.parents) > 0 {
			if id := g.parents[0].NextSession(); id != "" {
				return id
			}
			g.parents = g.parents[1:]
		}
		switch g.mode {
		case 0:
			g.parents = []session.Iterator{session.NewGroup(g.ownSessions()...).SessionIterator()}
		case 1:
			g.parents = g.parentSessions()
		default:
			return ""
		}
		g.mode++
	}
}

// ownSessions returns the sessions of owners and jobs of the state that have
// not been visited, and marks them.
func (g *sessionGroup) ownSessions() []string {
	var ids []string
	visit := func(id string) {
		if _, ok := g.visited[id]; ok || id == "" {
			return
		}
		g.visited[id] = struct{}{}
		ids = append(ids, id)
	}

	for _, reg := range g.solver.owners.lookup(g.origDigest) {
		visit(reg.job.SessionID)
	}

	g.mu.RLock()
	jobs := slices.Collect(maps.Keys(g.jobs))
	g.mu.RUnlock()
	// A job that has ended lends its session to nobody, but what it is still
	// building must not fail for want of it before it is canceled.
	if slices.ContainsFunc(jobs, func(j *Job) bool { return !j.ended() }) {
		jobs = slices.DeleteFunc(jobs, (*Job).ended)
	}
	slices.SortFunc(jobs, compareJobs)
	for _, j := range jobs {
		visit(j.SessionID)
	}
	return ids
}

// parentSessions returns the iterators of the parent states, in the order of
// their digests.
func (g *sessionGroup) parentSessions() []session.Iterator {
	g.solver.mu.RLock()
	defer g.solver.mu.RUnlock()

	var its []session.Iterator
	for _, dgst := range slices.Sorted(maps.Keys(g.state.parents)) {
		if st, ok := g.solver.actives[digest.Digest(dgst)]; ok {
			it := st.sessionIterator()
			it.visited = g.visited
			its = append(its, it)
		}
	}
	return its
}
