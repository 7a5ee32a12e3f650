package solver

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/graphload"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
)

// A job owns the vertices of every definition that it has solved, from Solve
// until it is discarded, whether or not it builds them. When its client passes
// a result on, another job can contain that result and be the first to build
// these vertices. The other job is then chained on this one, its base, and the
// vertices that the base owns can use the session of the base.
//
// Owners keep nothing alive. A state lives as long as the jobs that build it. A job
// that is not chained is built as if there were no owners.
//
// The solver looks the relation up from the job that builds: it takes the bases of
// the job, and checks which of them own the vertex. Registering a definition
// therefore touches only its own job, and what other jobs own costs nothing.
//
// Lock order: scheduler.mu, Solver.mu, state.mu, chains.mu, jobOwner.mu.

// ErrJobDiscarded is returned when something is registered with a job that has
// already ended.
var ErrJobDiscarded = errors.New("job is discarded")

// jobOwner is what a job owns and the jobs that it is chained on.
type jobOwner struct {
	// bases are the jobs that this one is chained on. The slice is replaced and
	// never changed, under chains.mu.
	bases   atomic.Pointer[[]*Job]
	chained map[*Job]struct{} // jobs that have this one as a base, protected by chains.mu
	results []string          // keys in chains.results, protected by chains.mu

	// session is nil until the session of the job is known to be connected.
	session atomic.Pointer[session.Caller]

	ahead jobAhead

	mu        sync.RWMutex // protects the rest
	vertices  map[digest.Digest]ownedVertex
	discarded bool
}

// ownedVertex is a vertex under its LLB digest, which covers the digests of its
// inputs: the vertices of a job are always closed under inputs.
type ownedVertex struct {
	Vertex
	seq    uint64 // order of registration in the solver
	caches []CacheManager
}

// chains knows the results that clients have received.
type chains struct {
	seq     atomic.Uint64
	lookups lookupCounts
	ahead   aheadSlots

	mu      sync.RWMutex
	results map[string][]*Job // by the encoded op of the result
}

// Register makes the job an owner of e and all its ancestors, without building
// them. It returns ErrJobDiscarded if the job has ended.
func (j *Job) Register(e Edge) error {
	o := &j.owner
	caches := e.Vertex.Options().CacheSources // the same for all vertices of a definition
	seq := j.list.chains.seq.Add(1)

	o.mu.Lock()
	defer o.mu.Unlock()
	if o.discarded {
		return errors.Wrapf(ErrJobDiscarded, "job %s", j.id)
	}
	if o.vertices == nil {
		o.vertices = map[digest.Digest]ownedVertex{}
	}
	var register func(Vertex)
	register = func(v Vertex) {
		dgst := v.Digest()
		owned, ok := o.vertices[dgst]
		if !ok {
			owned = ownedVertex{Vertex: v, seq: seq, caches: caches}
		} else {
			more := addCaches(owned.caches, caches)
			if len(more) == len(owned.caches) {
				return
			}
			owned.caches = more
		}
		o.vertices[dgst] = owned
		for _, in := range v.Inputs() {
			register(in.Vertex)
		}
	}
	register(e.Vertex)
	return nil
}

// addCaches returns caches with those of more that are not in it.
func addCaches(caches, more []CacheManager) []CacheManager {
	for _, cm := range more {
		if !slices.ContainsFunc(caches, func(c CacheManager) bool { return c.ID() == cm.ID() }) {
			caches = append(slices.Clip(caches), cm)
		}
	}
	return caches
}

// HasSession reports if the session of the job is known to have been connected.
func (j *Job) HasSession() bool {
	return j.owner.session.Load() != nil
}

// SetSession tells the job that its session is connected. The session is lent until
// it is closed: no step waits for a closed session.
func (j *Job) SetSession(c session.Caller) {
	j.owner.session.CompareAndSwap(nil, &c)
}

func (j *Job) sessionClosed() bool {
	c := j.owner.session.Load()
	return c != nil && session.IsClosed(*c)
}

// AddResult records that the client of the job has received a result. Jobs that
// contain the result are chained on this job. The result is identified by its encoded
// op, as in a definition.
func (j *Job) AddResult(op []byte) {
	c := &j.list.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.Err() != nil || slices.Contains(c.results[string(op)], j) {
		return
	}
	if c.results == nil {
		c.results = map[string][]*Job{}
	}
	key := string(op)
	c.results[key] = append(c.results[key], j)
	j.owner.results = append(j.owner.results, key)
}

// IsResult reports if the client of another job has received the result with
// the given op.
func (j *Job) IsResult(op []byte) bool {
	c := &j.list.chains
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.ContainsFunc(c.results[string(op)], func(base *Job) bool { return base != j })
}

// ChainOn chains the job on all others whose client has received the result
// with the given op, and returns them. The relation ends with either job.
func (j *Job) ChainOn(op []byte) (bases []*Job) {
	c := &j.list.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.Err() != nil {
		return nil
	}
	for _, base := range c.results[string(op)] {
		if base == j {
			continue
		}
		bases = append(bases, base)
		if _, ok := base.owner.chained[j]; ok {
			continue
		}
		if base.owner.chained == nil {
			base.owner.chained = map[*Job]struct{}{}
		}
		base.owner.chained[j] = struct{}{}
		j.owner.setBases(append(slices.Clone(j.bases()), base))
		logChained(j, base, op)
	}
	return bases
}

// bases returns the jobs that j is chained on, in the order in which they were
// found.
func (j *Job) bases() []*Job {
	if of := j.owner.ahead.of; of != nil {
		j = of
	}
	if p := j.owner.bases.Load(); p != nil {
		return *p
	}
	return nil
}

// called with chains.mu
func (o *jobOwner) setBases(bases []*Job) {
	o.bases.Store(&bases)
}

// Err returns ErrJobDiscarded if the job has ended.
func (j *Job) Err() error {
	j.owner.mu.RLock()
	defer j.owner.mu.RUnlock()
	if j.owner.discarded {
		return errors.Wrapf(ErrJobDiscarded, "job %s", j.id)
	}
	return nil
}

// owned returns the vertex if j owns it.
func (j *Job) owned(dgst digest.Digest) (ownedVertex, bool) {
	j.owner.mu.RLock()
	defer j.owner.mu.RUnlock()
	v, ok := j.owner.vertices[dgst]
	return v, ok
}

// HasBases reports if the job is chained on others.
func (j *Job) HasBases() bool {
	return len(j.bases()) > 0
}

// LentCaches returns the cache imports that the bases of the job have for a
// vertex.
func (j *Job) LentCaches(dgst digest.Digest) (caches []CacheManager) {
	for _, base := range j.bases() {
		if v, ok := base.owned(dgst); ok {
			caches = addCaches(caches, v.caches)
		}
	}
	return caches
}

// remove ends the job. Afterwards, the job owns nothing, is chained on no other job,
// and refuses to register vertices.
func (c *chains) remove(j *Job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &j.owner
	o.mu.Lock()
	o.discarded = true
	o.vertices = nil
	o.mu.Unlock()

	isJob := func(other *Job) bool { return other == j }
	for _, key := range o.results {
		if jobs := slices.DeleteFunc(c.results[key], isJob); len(jobs) > 0 {
			c.results[key] = jobs
		} else {
			delete(c.results, key)
		}
	}
	if len(c.results) == 0 {
		c.results = nil // an empty map keeps its memory
	}
	for child := range o.chained {
		child.owner.setBases(slices.DeleteFunc(slices.Clone(child.bases()), isJob))
	}
	for _, base := range j.bases() {
		delete(base.owner.chained, j)
	}
	o.results, o.chained = nil, nil
	o.bases.Store(nil)
	j.endAhead()
}

// mergedVertex is the vertex of a state together with the vertices whose edges were
// merged into it. It does not change when one of the states ends.
type mergedVertex struct {
	dgst digest.Digest
	from map[*mergedVertex]struct{}
}

// addMerged records that s, or a vertex that depends on s, took over an edge of src,
// and with it the job j. From then on, s stands for the vertex of src too, and asks
// its owners. Ancestors are recorded only for a chained job, because there are as many
// as the graph is deep.
// called with the lock of s
func (s *state) addMerged(src *state, j *Job, ancestor bool) {
	if j.owner.ahead.of != nil {
		j.takeOver(s)
	}
	if ancestor && !j.HasBases() || !graphload.Enabled() {
		return
	}
	c := &s.solver.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	into := s.mergedVertex()
	if into.from == nil {
		into.from = map[*mergedVertex]struct{}{}
	}
	into.from[src.mergedVertex()] = struct{}{}
}

// called with chains.mu
func (s *state) mergedVertex() *mergedVertex {
	if s.merged == nil {
		s.merged = &mergedVertex{dgst: s.origDigest}
	}
	return s.merged
}

// digests returns the LLB digests that s stands for.
func (s *state) digests() []digest.Digest {
	c := &s.solver.chains
	c.mu.RLock()
	defer c.mu.RUnlock()
	if s.merged == nil {
		return []digest.Digest{s.origDigest}
	}
	all := map[*mergedVertex]struct{}{s.merged: {}}
	for queue := []*mergedVertex{s.merged}; len(queue) > 0; queue = queue[1:] {
		for m := range queue[0].from {
			if _, ok := all[m]; !ok {
				all[m] = struct{}{}
				queue = append(queue, m)
			}
		}
	}
	dgsts := make([]digest.Digest, 0, len(all))
	for m := range all {
		dgsts = append(dgsts, m.dgst)
	}
	return dgsts
}

// lenders returns the owners of s that one of jobs is chained on, in the order
// in which they registered it.
func (s *state) lenders(jobs []*Job) []*Job {
	seqs := map[*Job]uint64{}
	var dgsts []digest.Digest
	for _, j := range jobs {
		for _, base := range j.bases() {
			if base.sessionClosed() || base.SessionID == j.SessionID { // builds of a client can share its session
				continue
			}
			if dgsts == nil {
				dgsts = s.digests()
			}
			for _, dgst := range dgsts {
				if v, ok := base.owned(dgst); ok && (seqs[base] == 0 || v.seq < seqs[base]) {
					seqs[base] = v.seq
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seqs), func(a, b *Job) int {
		return cmp.Compare(seqs[a], seqs[b])
	})
}
