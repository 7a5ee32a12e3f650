package solver

import (
	"cmp"
	"maps"
	"slices"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/graphload"
)

// sessions returns an iterator over the sessions that can serve the vertex, in this
// order: the sessions of owners that a job which builds the vertex is chained on, by
// registration; those of the jobs that build it, by start; the same for the parents of
// a nested build. If several sessions offer a value, the same one is used every time.
func (s *state) sessions() session.Iterator {
	if !graphload.Enabled() {
		return s.sessionIterator()
	}
	return &stateSessions{state: s, next: s.ownSessions(nil), visited: map[string]struct{}{}}
}

// stateSessions returns each session of a state once.
type stateSessions struct {
	state   *state
	next    []stateSession
	visited map[string]struct{}
	lent    bool
}

// stateSession is a session that can serve a state.
type stateSession struct {
	id   string
	lent bool
}

var (
	_ session.LentGroup    = (*state)(nil)
	_ session.LentIterator = (*stateSessions)(nil)
)

// NextSession implements session.Iterator. It also returns the sessions of jobs that
// join during the iteration.
func (it *stateSessions) NextSession() string {
	for {
		for len(it.next) > 0 {
			s := it.next[0]
			it.next = it.next[1:]
			if !it.isVisited(s) {
				it.visited[s.id], it.lent = struct{}{}, s.lent
				return s.id
			}
		}
		it.next = slices.DeleteFunc(it.state.allSessions(nil), it.isVisited)
		if len(it.next) == 0 {
			return ""
		}
	}
}

func (it *stateSessions) isVisited(s stateSession) bool {
	_, ok := it.visited[s.id]
	return ok || s.id == ""
}

// Lent implements session.LentIterator.
func (it *stateSessions) Lent() bool {
	return it.lent
}

// Lent implements session.LentGroup.
func (s *state) Lent() bool {
	if !graphload.Enabled() {
		return false
	}
	own := s.ownSessions(nil)
	if len(own) == 0 {
		own = s.allSessions(nil)
	}
	return len(own) > 0 && own[0].lent
}

// LentTo returns the sessions that are lent to the jobs that have a session in user.
// It ignores what is lent to other jobs that build the same vertex.
func (s *state) LentTo(user session.Group) (lent []string) {
	ids := session.AllSessionIDs(user)
	if len(ids) == 0 || !graphload.Enabled() {
		return nil
	}
	for _, ss := range s.allSessions(func(j *Job) bool { return slices.Contains(ids, j.SessionID) }) {
		if ss.lent && ss.id != "" && !slices.Contains(lent, ss.id) {
			lent = append(lent, ss.id)
		}
	}
	return lent
}

// ownSessions returns the sessions of the state without those of its parents, in
// order. A session can be returned more than once. If only is not nil, it selects the
// jobs of the state.
func (s *state) ownSessions(only func(*Job) bool) []stateSession {
	s.mu.RLock()
	jobs := slices.Collect(maps.Keys(s.jobs))
	s.mu.RUnlock()
	if only != nil {
		jobs = slices.DeleteFunc(jobs, func(j *Job) bool { return !only(j) })
	}
	slices.SortFunc(jobs, compareJobs)

	var out []stateSession
	for _, j := range s.lenders(jobs) {
		out = append(out, stateSession{j.SessionID, true})
	}
	for _, j := range jobs {
		out = append(out, stateSession{j.SessionID, false})
	}
	return out
}

// allSessions returns the sessions of the state and its parents, in order.
func (s *state) allSessions(only func(*Job) bool) []stateSession {
	s.solver.mu.RLock()
	defer s.solver.mu.RUnlock()

	var out []stateSession
	visited := map[*state]struct{}{}
	var add func(*state)
	add = func(s *state) {
		visited[s] = struct{}{}
		out = append(out, s.ownSessions(only)...)
		for _, dgst := range slices.Sorted(maps.Keys(s.parents)) {
			parent, ok := s.solver.actives[dgst]
			if _, done := visited[parent]; ok && !done {
				add(parent)
			}
		}
	}
	add(s)
	return out
}

// compareJobs orders jobs by start.
func compareJobs(a, b *Job) int {
	return cmp.Or(a.startedTime.Compare(b.startedTime), cmp.Compare(a.uniqueID, b.uniqueID))
}
