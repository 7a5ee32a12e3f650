package solver

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
)

// Graph is a snapshot of the build graph, for people to read: the vertices that are
// being built, and the vertices that builds own and no build has asked for. Of an op,
// it has what progress shows and nothing else.
type Graph struct {
	Time   time.Time    `json:"time"`
	Builds []GraphBuild `json:"builds"` // by start
	Steps  []GraphStep  `json:"steps"`  // inputs first
}

// GraphBuild is a job.
type GraphBuild struct {
	Ref       string    `json:"ref"`
	Session   string    `json:"session"`
	Started   time.Time `json:"started"`
	ChainedOn []string  `json:"chainedOn"` // refs of its bases, which lend it their session
	Owned     int       `json:"owned"`     // vertices that it registered
	Active    int       `json:"building"`  // vertices that it builds
}

// GraphStep is a vertex with a state, with owners, or with both.
type GraphStep struct {
	Digest     digest.Digest   `json:"digest"`
	LLBDigest  digest.Digest   `json:"llbDigest,omitempty"` // if it differs from Digest
	Name       string          `json:"name"`                // as in progress
	Status     GraphStatus     `json:"status"`
	Inputs     []digest.Digest `json:"inputs"`
	Parents    []digest.Digest `json:"parents,omitempty"` // of the nested builds that it is part of
	MergedInto digest.Digest   `json:"mergedInto,omitempty"`
	Owners     []string        `json:"owners"`   // refs of the builds that own it, by registration
	Jobs       []string        `json:"jobs"`     // refs of the builds that build it, by start
	Sessions   []GraphSession  `json:"sessions"` // in the order in which they would be asked
}

// GraphSession is a session that a step can use.
type GraphSession struct {
	ID    string `json:"id"`
	Build string `json:"build,omitempty"` // ref
	Lent  bool   `json:"lent"`            // by that build, to one that is chained on it
}

// GraphStatus is the progress of a step.
type GraphStatus string

// A step is registered until a build asks for it. Its status is unknown while the
// scheduler is busy.
const (
	GraphRegistered GraphStatus = "registered"
	GraphWaiting    GraphStatus = "waiting"
	GraphRunning    GraphStatus = "running"
	GraphDone       GraphStatus = "done"
	GraphCached     GraphStatus = "cached"
	GraphFailed     GraphStatus = "failed"
	GraphUnknown    GraphStatus = "unknown"
)

const (
	// graphBatch bounds how many states are read under one lock. The scheduler and
	// builds that load wait for it.
	graphBatch = 128

	// The scheduler can hold its lock for as long as a cache import takes.
	graphLockTries = 50
	graphLockPause = 2 * time.Millisecond
)

// Graph returns a snapshot of the graph. Builds continue while it is read, so parts of
// it can be a little older than others.
func (jl *Solver) Graph() *Graph {
	r := graphReader{
		solver:   jl,
		sessions: map[string]string{},
		owners:   map[digest.Digest][]graphOwner{},
		steps:    map[digest.Digest]*GraphStep{},
		byLLB:    map[digest.Digest]digest.Digest{},
		tries:    graphLockTries,
	}
	g := &Graph{Time: time.Now(), Builds: []GraphBuild{}}
	jobs := jl.activeJobs()
	for _, j := range jobs {
		b := GraphBuild{Ref: j.id, Started: j.startedTime, ChainedOn: []string{}, Owned: r.readOwned(j)}
		for _, base := range j.bases() {
			b.ChainedOn = append(b.ChainedOn, base.id)
		}
		g.Builds = append(g.Builds, b)
	}
	r.readStates()
	r.addRegistered()
	building := map[string]int{}
	for _, step := range r.steps {
		for _, ref := range step.Jobs {
			building[ref]++
		}
	}
	for i := range g.Builds {
		b := &g.Builds[i]
		b.Session, b.Active = r.sessions[b.Ref], building[b.Ref]
	}
	g.Steps = inputsFirst(r.steps, r.byLLB)
	return g
}

// activeJobs returns the jobs that have not been discarded, by start.
func (jl *Solver) activeJobs() []*Job {
	jl.mu.RLock()
	jobs := slices.Collect(maps.Values(jl.jobs))
	jl.mu.RUnlock()

	jobs = slices.DeleteFunc(jobs, func(j *Job) bool { return j.Err() != nil })
	slices.SortFunc(jobs, compareJobs)
	return jobs
}

// graphReader collects the steps of a graph.
type graphReader struct {
	solver   *Solver
	sessions map[string]string              // by ref of their build
	owners   map[digest.Digest][]graphOwner // by LLB digest
	steps    map[digest.Digest]*GraphStep
	byLLB    map[digest.Digest]digest.Digest // digests of steps that have a state
	edges    []graphEdges
	tries    int // to lock the scheduler, for each batch
}

type graphOwner struct {
	ref    string
	vertex ownedVertex
}

// readOwned reads what j owns and returns the number of vertices.
func (r *graphReader) readOwned(j *Job) int {
	j.owner.mu.RLock()
	vertices := maps.Clone(j.owner.vertices)
	j.owner.mu.RUnlock()

	for dgst, v := range vertices {
		r.owners[dgst] = append(r.owners[dgst], graphOwner{ref: j.id, vertex: v})
	}
	if len(vertices) > 0 {
		// SessionID is set before a job has its first vertex, without a lock
		r.sessions[j.id] = j.SessionID
	}
	return len(vertices)
}

// ownersOf returns the refs of the builds that own one of the digests, by
// registration.
func (r *graphReader) ownersOf(dgsts ...digest.Digest) []string {
	var owners []graphOwner
	for _, dgst := range dgsts {
		owners = append(owners, r.owners[dgst]...)
	}
	slices.SortFunc(owners, func(a, b graphOwner) int {
		return cmp.Compare(a.vertex.seq, b.vertex.seq)
	})
	refs := []string{}
	for _, o := range owners {
		if !slices.Contains(refs, o.ref) {
			refs = append(refs, o.ref)
		}
	}
	return refs
}

// readStates adds the steps that have a state.
func (r *graphReader) readStates() {
	jl := r.solver
	jl.mu.RLock()
	states := slices.Collect(maps.Values(jl.actives))
	jl.mu.RUnlock()

	read := make(map[*state]*GraphStep, len(states))
	for batch := range slices.Chunk(states, graphBatch) {
		r.readBatch(batch, read)
	}
	for batch := range slices.Chunk(r.edges, graphBatch) {
		r.readEdges(batch)
	}
	for st, step := range read {
		step.Owners = r.ownersOf(st.digests()...)
		it := st.SessionIterator()
		lent, _ := it.(session.LentIterator)
		for id := it.NextSession(); id != ""; id = it.NextSession() {
			s := GraphSession{ID: id, Lent: lent != nil && lent.Lent()}
			s.Build = r.buildOf(step, s)
			step.Sessions = append(step.Sessions, s)
		}
		r.steps[step.Digest] = step
		r.byLLB[st.origDigest] = step.Digest
	}
}

// buildOf returns the ref of the build that has the session. Several builds can
// have the same one.
func (r *graphReader) buildOf(step *GraphStep, s GraphSession) string {
	refs := step.Jobs
	if s.Lent {
		refs = step.Owners
	}
	has := func(ref string) bool { return r.sessions[ref] == s.ID }
	i := slices.IndexFunc(refs, has)
	if i < 0 { // the session comes from a parent of the step
		refs = slices.Sorted(maps.Keys(r.sessions))
		i = slices.IndexFunc(refs, has)
	}
	if i < 0 {
		return ""
	}
	return refs[i]
}

// readBatch reads the states that are still active, without their status.
func (r *graphReader) readBatch(states []*state, out map[*state]*GraphStep) {
	jl := r.solver
	jl.mu.RLock()
	defer jl.mu.RUnlock()
	for _, st := range states {
		if jl.actives[st.vtx.Digest()] == st {
			out[st] = r.readState(st)
		}
	}
}

// graphEdges are the edges of a step.
type graphEdges struct {
	step  *GraphStep
	edges []*edge
}

// readEdges reads the status of the edges. It takes the lock of the scheduler and no
// other, so that the scheduler never waits for locks of builds that load or end.
func (r *graphReader) readEdges(batch []graphEdges) {
	mu := &r.solver.s.mu
	if !lockWithin(mu, r.tries) {
		r.tries = 1 // do not wait again for the rest of the graph
		return
	}
	defer mu.Unlock()
	for _, ge := range batch {
		ge.step.Status = GraphWaiting
		for _, e := range ge.edges {
			for e.owner != nil {
				e = e.owner
			}
			if dgst := e.edge.Vertex.Digest(); dgst != ge.step.Digest {
				ge.step.MergedInto = dgst
			}
			if st := edgeStatus(e); slices.Index(statusOrder, st) > slices.Index(statusOrder, ge.step.Status) {
				ge.step.Status = st
			}
		}
	}
}

func lockWithin(mu *sync.Mutex, tries int) bool {
	for range tries - 1 {
		if mu.TryLock() {
			return true
		}
		time.Sleep(graphLockPause)
	}
	return mu.TryLock()
}

// called with solver lock
func (r *graphReader) readState(s *state) *GraphStep {
	step := &GraphStep{
		Digest:   s.vtx.Digest(),
		Name:     displayName(s.vtx.Name()),
		Status:   GraphUnknown,
		Inputs:   inputDigests(s.vtx),
		Parents:  slices.Sorted(maps.Keys(s.parents)),
		Jobs:     []string{},
		Sessions: []GraphSession{},
	}
	if s.origDigest != step.Digest {
		step.LLBDigest = s.origDigest
	}

	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, j := range slices.SortedFunc(maps.Keys(s.jobs), compareJobs) {
		step.Jobs = append(step.Jobs, j.id)
		r.sessions[j.id] = j.SessionID
	}
	step.Jobs = slices.Compact(step.Jobs) // a second job with the same id may build it ahead
	r.edges = append(r.edges, graphEdges{step, slices.Collect(maps.Values(s.edges))})
	return step
}

// statusOrder orders the status of edges: a step with several edges has the last one.
var statusOrder = []GraphStatus{GraphWaiting, GraphCached, GraphDone, GraphRunning, GraphFailed}

// called with the lock of the scheduler
func edgeStatus(e *edge) GraphStatus {
	switch {
	case e.err != nil:
		return GraphFailed
	case e.isComplete() && e.execCacheLoad:
		return GraphCached
	case e.isComplete():
		return GraphDone
	case e.execReq != nil:
		return GraphRunning
	default:
		return GraphWaiting
	}
}

// addRegistered adds the steps that have owners and no state.
func (r *graphReader) addRegistered() {
	for dgst, owners := range r.owners {
		if _, ok := r.byLLB[dgst]; ok {
			continue
		}
		r.steps[dgst] = &GraphStep{
			Digest:   dgst,
			Name:     displayName(owners[0].vertex.Name()),
			Status:   GraphRegistered,
			Inputs:   inputDigests(owners[0].vertex),
			Owners:   r.ownersOf(dgst),
			Jobs:     []string{},
			Sessions: []GraphSession{},
		}
	}
}

// inputDigests returns the digests of the inputs of v, each once.
func inputDigests(v Vertex) []digest.Digest {
	out := []digest.Digest{}
	for _, in := range v.Inputs() {
		if dgst := in.Vertex.Digest(); !slices.Contains(out, dgst) {
			out = append(out, dgst)
		}
	}
	return out
}

// urlUser matches the part before the host in a URL, up to the last @: a password may
// contain an @, and URL parsers accept it.
var urlUser = regexp.MustCompile(`://[^/\s]*@`)

// displayName returns name without the credentials of the URLs in it.
func displayName(name string) string {
	return urlUser.ReplaceAllString(name, "://xxxxx@")
}

// inputsFirst sorts the steps. If an input has no step of its digest, but one of the
// same LLB digest, it is set to the digest of that step.
func inputsFirst(steps map[digest.Digest]*GraphStep, byLLB map[digest.Digest]digest.Digest) []GraphStep {
	out := make([]GraphStep, 0, len(steps))
	visited := make(map[digest.Digest]struct{}, len(steps))
	var visit func(digest.Digest)
	visit = func(dgst digest.Digest) {
		step, ok := steps[dgst]
		if _, done := visited[dgst]; done || !ok {
			return
		}
		visited[dgst] = struct{}{}
		for i, in := range step.Inputs {
			if key, ok := byLLB[in]; ok && steps[in] == nil {
				step.Inputs[i] = key
			}
			visit(step.Inputs[i])
		}
		out = append(out, *step)
	}
	for _, dgst := range slices.Sorted(maps.Keys(steps)) {
		visit(dgst)
	}
	return out
}
