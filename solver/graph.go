package solver

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
)

// Graph is the build graph of a moment, for people to read: the vertices that
// are being built and those that builds own without building them. It holds
// what progress shows of a vertex and nothing else of its op.
type Graph struct {
	Time   time.Time    `json:"time"`
	Builds []GraphBuild `json:"builds"` // by start
	Steps  []GraphStep  `json:"steps"`  // inputs first
}

// GraphBuild is a job.
type GraphBuild struct {
	Ref     string    `json:"ref"`
	Session string    `json:"session"`
	Started time.Time `json:"started"`
	Owned   int       `json:"owned"`    // vertices that it registered
	Active  int       `json:"building"` // vertices that it builds
}

// GraphStep is a vertex that has a state, owners, or both.
type GraphStep struct {
	Digest     digest.Digest   `json:"digest"`
	LLBDigest  digest.Digest   `json:"llbDigest,omitempty"` // if it is another one
	Name       string          `json:"name"`                // as in progress
	Status     GraphStatus     `json:"status"`
	AgeSeconds float64         `json:"ageSeconds"` // since it was registered or first asked for
	Inputs     []digest.Digest `json:"inputs"`
	Parents    []digest.Digest `json:"parents,omitempty"` // of the nested builds that it is part of
	MergedInto digest.Digest   `json:"mergedInto,omitempty"`
	Owners     []GraphOwner    `json:"owners"`   // in the order of registration
	Jobs       []string        `json:"jobs"`     // refs of the builds that build it, by start
	Sessions   []string        `json:"sessions"` // in the order in which they would be asked
}

// GraphOwner is a build that owns a step.
type GraphOwner struct {
	Build   string    `json:"build"`
	Session string    `json:"session"`
	Since   time.Time `json:"since"`
}

// GraphStatus tells how far a step is.
type GraphStatus string

// A step is registered until a build asks for it.
const (
	GraphRegistered GraphStatus = "registered"
	GraphWaiting    GraphStatus = "waiting"
	GraphRunning    GraphStatus = "running"
	GraphDone       GraphStatus = "done"
	GraphCached     GraphStatus = "cached"
	GraphFailed     GraphStatus = "failed"
)

// VertexInfo describes a vertex that has not been loaded.
type VertexInfo struct {
	Digest digest.Digest
	Name   string
	Inputs []digest.Digest
}

type opPhase int32

const (
	opWaiting opPhase = iota
	opCached
	opDone
	opRunning
)

// graphBatch bounds how many states are read in one go. The scheduler and
// loading builds wait that long.
const graphBatch = 128

// Graph returns the graph of this moment. Builds go on while it is read, so
// parts of it can be a little older than others.
func (jl *Solver) Graph() *Graph {
	g := &Graph{Time: time.Now(), Builds: []GraphBuild{}, Steps: []GraphStep{}}
	jobs := jl.activeJobs()
	owned := map[*Job]int{}
	owners := map[digest.Digest][]*registration{}
	for _, j := range jobs {
		vertices := jl.owners.vertices(j)
		owned[j] = len(vertices)
		for batch := range slices.Chunk(vertices, registerBatch) {
			jl.owners.collect(owners, batch)
		}
	}

	building := map[string]int{}
	pending := maps.Clone(owners)
	byLLB := map[digest.Digest]digest.Digest{}
	steps := map[digest.Digest]*GraphStep{}
	for _, st := range jl.activeStates() {
		step := st.step
		step.Sessions = append([]string{}, session.AllSessionIDs(st.state)...)
		step.setOwners(owners[st.origDigest], &st.since)
		step.AgeSeconds = age(g.Time, st.since)
		steps[step.Digest] = step
		byLLB[st.origDigest] = step.Digest
		delete(pending, st.origDigest)
		for _, id := range step.Jobs {
			building[id]++
		}
	}
	for _, v := range describePending(pending) {
		step := &GraphStep{
			Digest: v.Digest, Name: v.Name, Status: GraphRegistered,
			Inputs: append([]digest.Digest{}, v.Inputs...), Jobs: []string{}, Sessions: []string{},
		}
		var since time.Time
		step.setOwners(pending[v.Digest], &since)
		step.AgeSeconds = age(g.Time, since)
		for _, o := range step.Owners {
			if o.Session != "" && !slices.Contains(step.Sessions, o.Session) {
				step.Sessions = append(step.Sessions, o.Session)
			}
		}
		steps[step.Digest] = step
	}

	for _, j := range jobs {
		b := GraphBuild{Ref: j.id, Started: j.startedTime, Owned: owned[j], Active: building[j.id]}
		if b.Owned > 0 || b.Active > 0 {
			// it is set before a job gets to its first vertex, without a lock
			b.Session = j.SessionID
		}
		g.Builds = append(g.Builds, b)
	}
	g.Steps = inputsFirst(steps, byLLB)
	return g
}

// activeJobs returns the jobs that have not been discarded, by start.
func (jl *Solver) activeJobs() []*Job {
	jl.mu.RLock()
	jobs := slices.Collect(maps.Values(jl.jobs))
	jl.mu.RUnlock()

	jobs = slices.DeleteFunc(jobs, (*Job).ended)
	slices.SortFunc(jobs, compareJobs)
	return jobs
}

func compareJobs(a, b *Job) int {
	return cmp.Or(a.startedTime.Compare(b.startedTime), cmp.Compare(a.uniqueID, b.uniqueID))
}

// vertices returns a copy of what j owns.
func (o *ownerIndex) vertices(j *Job) []digest.Digest {
	owned := j.ownership()
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slices.Clone(owned.vertices)
}

// collect adds the owners of the vertices to m.
func (o *ownerIndex) collect(m map[digest.Digest][]*registration, vertices []digest.Digest) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, dgst := range vertices {
		if regs := o.owners[dgst]; len(regs) > 0 {
			m[dgst] = regs
		}
	}
}

// stateStep is a state together with the step that it was read into.
type stateStep struct {
	*state
	step  *GraphStep
	since time.Time
}

func (jl *Solver) activeStates() (out []stateStep) {
	jl.mu.RLock()
	states := slices.Collect(maps.Values(jl.actives))
	jl.mu.RUnlock()

	for batch := range slices.Chunk(states, graphBatch) {
		func() {
			// edges are merged under the lock of the scheduler
			jl.s.mu.Lock()
			defer jl.s.mu.Unlock()
			jl.mu.RLock()
			defer jl.mu.RUnlock()
			for _, st := range batch {
				if jl.actives[st.vtx.Digest()] == st {
					out = append(out, st.read())
				}
			}
		}()
	}
	return out
}

// read describes the state.
// called with scheduler and solver lock
func (s *state) read() stateStep {
	step := &GraphStep{
		Digest:  s.vtx.Digest(),
		Name:    displayName(s.vtx.Name()),
		Inputs:  inputDigests(s.vtx),
		Parents: slices.Sorted(maps.Keys(s.parents)),
		Jobs:    []string{},
	}
	if s.origDigest != step.Digest {
		step.LLBDigest = s.origDigest
	}
	out := stateStep{state: s, step: step}

	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.edges {
		if op, ok := e.op.(*observedOp); ok {
			oldest(&out.since, op.since)
		}
		for e.owner != nil {
			e = e.owner
		}
		if dgst := e.edge.Vertex.Digest(); dgst != step.Digest {
			step.MergedInto = dgst
		}
	}
	step.Status = graphStatus(s.ops())
	jobs := slices.SortedFunc(maps.Keys(s.jobs), compareJobs)
	for _, j := range jobs {
		step.Jobs = append(step.Jobs, j.id)
	}
	if out.since.IsZero() && len(jobs) > 0 {
		out.since = jobs[0].startedTime
	}
	return out
}

func graphStatus(ops []*observedOp) GraphStatus {
	var phase opPhase
	for _, op := range ops {
		if op.failed.Load() {
			return GraphFailed
		}
		phase = max(phase, opPhase(op.phase.Load()))
	}
	switch phase {
	case opRunning:
		return GraphRunning
	case opDone:
		return GraphDone
	case opCached:
		return GraphCached
	default:
		return GraphWaiting
	}
}

func (step *GraphStep) setOwners(regs []*registration, since *time.Time) {
	step.Owners = make([]GraphOwner, 0, len(regs))
	for _, reg := range regs {
		step.Owners = append(step.Owners, GraphOwner{Build: reg.job.id, Session: reg.job.SessionID, Since: reg.since})
		oldest(since, reg.since)
	}
}

func oldest(t *time.Time, other time.Time) {
	if t.IsZero() || other.Before(*t) {
		*t = other
	}
}

func age(now, since time.Time) float64 {
	if since.IsZero() {
		return 0
	}
	return max(0, now.Sub(since).Seconds())
}

// describePending describes vertices that have owners and no state. Each
// registration is asked at most once, and only for what no other knew.
func describePending(pending map[digest.Digest][]*registration) map[digest.Digest]VertexInfo {
	out := make(map[digest.Digest]VertexInfo, len(pending))
	asked := map[*registration]struct{}{}
	for dgst, regs := range pending {
		for _, reg := range regs {
			if _, ok := out[dgst]; ok {
				break
			}
			if _, ok := asked[reg]; ok || reg.describe == nil {
				continue
			}
			asked[reg] = struct{}{}
			for _, v := range reg.describe() {
				if _, ok := pending[v.Digest]; ok {
					v.Name = displayName(v.Name)
					out[v.Digest] = v
				}
			}
		}
		if _, ok := out[dgst]; !ok {
			out[dgst] = VertexInfo{Digest: dgst}
		}
	}
	return out
}

// describeGraph describes v and all its ancestors.
func describeGraph(v Vertex) (out []VertexInfo) {
	for _, v := range withAncestors(nil, v) {
		out = append(out, VertexInfo{Digest: v.Digest(), Name: v.Name(), Inputs: inputDigests(v)})
	}
	return out
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

// urlUser is what comes before the host in a URL that is part of a name, up to
// the last @: a password may have one, and parsers of URLs accept it.
var urlUser = regexp.MustCompile(`://[^/\s]*@`)

// displayName returns name without the credentials of the URLs in it.
func displayName(name string) string {
	return urlUser.ReplaceAllString(name, "://xxxxx@")
}

// inputsFirst sorts the steps. Inputs that have no step of their digest, but
// one of the same LLB digest, are set to that.
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
