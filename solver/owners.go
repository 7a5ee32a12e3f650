package solver

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
)

// Owners are a second kind of reference to a vertex, beside the jobs that
// build it. A job becomes an owner when it solves a definition lazily: it does
// not build the vertices (yet), but other jobs may, because the client chained
// a result on the returned reference. Until the owning job is discarded, an
// owner
//
//   - lends its session and its cache imports to whoever builds the vertex,
//   - keeps the state of the vertex, with everything that was computed on it.
//
// Everything else (progress, values, resolver cache, compatibility version)
// stays with the jobs that build, so a job that only registered cannot change
// or fail another build, and its own progress shows nothing that it does not
// evaluate.
//
// Owners are recorded by LLB digest and not in the states. Registering
// therefore creates no state, and a state that is created later, or created
// again for the no-cache variant of the same digest, finds the same owners in
// the same order. The digest of a vertex covers the digests of its inputs, so
// the vertices of a job are always closed under inputs: add inputs first and
// remove them last.
//
// Lock order: scheduler.mu, Solver.mu, state.mu, then one of ownerIndex.mu and
// state.allPwMu. Nothing that locks is called with ownerIndex.mu held.

// registerBatch bounds the number of vertices that are added or removed in one
// go, so that a large graph does not hold up other builds.
const registerBatch = 512

// ErrJobDiscarded is returned when a vertex is registered with, or evaluated
// by, a job that has already ended.
var ErrJobDiscarded = errors.New("job is discarded")

func errJobDiscarded(j *Job, what string) error {
	return errors.Wrapf(ErrJobDiscarded, "failed to %s with job %s", what, j.id)
}

// registration is one lazy solve of a job. It stands for the job in all
// vertices that the solve added.
type registration struct {
	job    *Job
	owned  *ownership // of job
	seq    uint64
	caches []CacheManager

	// for people who look at the graph
	since    time.Time
	describe func() []VertexInfo // not nil, of the vertices and their ancestors

	// alone is the owners of a vertex that has no other. It saves a slice for
	// every vertex of the common case.
	alone [1]*registration
}

// covers reports if r makes j an owner that provides all of caches.
func (r *registration) covers(j *Job, caches []CacheManager) bool {
	if r.job != j {
		return false
	}
	for _, cm := range caches {
		if !slices.Contains(r.caches, cm) {
			return false
		}
	}
	return true
}

// ownership is what a job keeps about the vertices it owns.
type ownership struct {
	vertices  []digest.Digest // inputs first, protected by ownerIndex.mu
	discarded bool            // protected by ownerIndex.mu
	builds    jobBuilds
	released  sync.Once
}

// ownershipKey is where a job keeps its ownership, beside what others set on it.
const ownershipKey = "graphload.ownership"

func (j *Job) ownership() *ownership {
	if v, ok := j.values.Load(ownershipKey); ok {
		return v.(*ownership)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	v, _ := j.values.LoadOrStore(ownershipKey, &ownership{builds: jobBuilds{ctx: ctx, cancel: cancel}})
	return v.(*ownership)
}

// ownerIndex finds the owners of a vertex by its LLB digest. The zero value is
// ready for use.
type ownerIndex struct {
	mu     sync.RWMutex
	seq    uint64
	owners map[digest.Digest][]*registration // oldest first, never empty
	room   int                               // how many owners has room for
	kept   map[digest.Digest][]*state        // states that only owners keep
	failed map[*state]struct{}               // active states that are not to be kept

	// dropped is set when a failed state has been deleted, until it is certain
	// that nothing is kept that depends on it.
	dropped bool

	// merged lists the vertices that took over an edge of another vertex, and
	// their ancestors; mergedFrom is the reverse. Entries live as long as the
	// states on both sides.
	merged     map[digest.Digest][]digest.Digest
	mergedFrom map[digest.Digest][]digest.Digest

	counts ownerCounts
}

// register makes j an owner of the vertices, given with inputs first, and
// provides them with caches.
func (o *ownerIndex) register(ctx context.Context, j *Job, vertices []digest.Digest, caches []CacheManager, describe func() []VertexInfo) error {
	if len(vertices) == 0 {
		return nil
	}
	owned := j.ownership()
	o.mu.Lock()
	o.seq++
	if o.owners == nil {
		o.room = len(vertices)
		o.owners = make(map[digest.Digest][]*registration, o.room)
	}
	reg := &registration{job: j, owned: owned, seq: o.seq, caches: caches, since: time.Now(), describe: describe}
	o.mu.Unlock()
	reg.alone[0] = reg

	for batch := range slices.Chunk(vertices, registerBatch) {
		if err := context.Cause(ctx); err != nil {
			return errors.WithStack(err)
		}
		if err := o.addBatch(reg, batch); err != nil {
			return err
		}
	}
	return nil
}

func (o *ownerIndex) addBatch(reg *registration, batch []digest.Digest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if reg.owned.discarded {
		return errJobDiscarded(reg.job, "register vertices")
	}
	for _, dgst := range batch {
		o.add(dgst, reg)
		for _, target := range o.merged[dgst] {
			o.add(target, reg)
		}
	}
	return nil
}

// missing returns the vertices of the graph of v that j does not own, inputs
// first. Ancestors of a vertex that j owns are not visited.
func (o *ownerIndex) missing(j *Job, v Vertex, caches []CacheManager) []digest.Digest {
	o.mu.RLock()
	defer o.mu.RUnlock()

	var out []digest.Digest
	for _, v := range withAncestors(func(dgst digest.Digest) bool { return o.has(dgst, j, caches) }, v) {
		out = append(out, v.Digest())
	}
	return out
}

// withAncestors returns v and its ancestors, each once and after its inputs.
// It goes no further where skip, if it is not nil, reports true.
func withAncestors(skip func(digest.Digest) bool, v Vertex) (out []Vertex) {
	visited := map[digest.Digest]struct{}{}
	var walk func(Vertex)
	walk = func(v Vertex) {
		dgst := v.Digest()
		if _, ok := visited[dgst]; ok || skip != nil && skip(dgst) {
			return
		}
		visited[dgst] = struct{}{}
		for _, in := range v.Inputs() {
			walk(in.Vertex)
		}
		out = append(out, v)
	}
	walk(v)
	return out
}

// has reports if j owns dgst with all of caches. Requires mu.
func (o *ownerIndex) has(dgst digest.Digest, j *Job, caches []CacheManager) bool {
	return slices.ContainsFunc(o.owners[dgst], func(r *registration) bool {
		return r.covers(j, caches)
	})
}

// add makes reg an owner of dgst, unless its job is one already or is being
// discarded. Registrations can arrive out of order, from solves that run at
// the same time and from edge merges. Requires mu.
func (o *ownerIndex) add(dgst digest.Digest, reg *registration) {
	if reg.owned.discarded {
		return
	}
	regs := o.owners[dgst]
	if len(regs) == 0 {
		if o.owners == nil { // the first ones have been removed meanwhile
			o.owners = map[digest.Digest][]*registration{}
		}
		o.owners[dgst] = reg.alone[:]
		o.room = max(o.room, len(o.owners))
		reg.owned.vertices = append(reg.owned.vertices, dgst)
		return
	}
	if o.has(dgst, reg.job, reg.caches) {
		return
	}
	i := len(regs)
	for i > 0 && regs[i-1].seq > reg.seq {
		i--
	}
	// the one-element slice of a registration is shared, insert always copies it
	o.owners[dgst] = slices.Insert(slices.Clip(regs), i, reg)
	reg.owned.vertices = append(reg.owned.vertices, dgst)
}

// inherit makes the owners of src, which it returns, owners of dst as well,
// including those that register src later, but not what was merged into src.
func (o *ownerIndex) inherit(dst, src digest.Digest) []*registration {
	if dst == src {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.merged[src], dst) {
		link(&o.merged, src, dst)
		link(&o.mergedFrom, dst, src)
	}
	for _, reg := range o.owners[src] {
		o.add(dst, reg)
	}
	return o.owners[src]
}

// forgetMerges drops the merges from and to dgst. Requires mu.
func (o *ownerIndex) forgetMerges(dgst digest.Digest) {
	for _, dst := range o.merged[dgst] {
		unlink(o.mergedFrom, dst, dgst)
	}
	for _, src := range o.mergedFrom[dgst] {
		unlink(o.merged, src, dgst)
	}
	delete(o.merged, dgst)
	delete(o.mergedFrom, dgst)
}

func link(m *map[digest.Digest][]digest.Digest, from, to digest.Digest) {
	if *m == nil {
		*m = map[digest.Digest][]digest.Digest{}
	}
	(*m)[from] = append((*m)[from], to)
}

func unlink(m map[digest.Digest][]digest.Digest, from, to digest.Digest) {
	rest := slices.DeleteFunc(m[from], func(dgst digest.Digest) bool { return dgst == to })
	if len(rest) == 0 {
		delete(m, from)
		return
	}
	m[from] = rest
}

// remove ends everything that j owns and refuses what it would register later.
// It returns the kept states that have no owner left.
func (o *ownerIndex) remove(j *Job) (orphans []*state) {
	owned := j.ownership()
	o.mu.Lock()
	owned.discarded = true
	vertices := owned.vertices
	owned.vertices = nil
	o.mu.Unlock()

	// consumers before their inputs
	slices.Reverse(vertices)
	for batch := range slices.Chunk(vertices, registerBatch) {
		orphans = append(orphans, o.removeBatch(j, batch)...)
	}
	logReleased(j, vertices, orphans)
	return orphans
}

// shrink gives back the memory of owners that are gone, which a map does not
// do by itself. It is called often enough that it pays for what it copies with
// what has been removed. Requires mu.
func (o *ownerIndex) shrink() {
	if len(o.owners) > o.room/4 {
		return
	}
	var owners map[digest.Digest][]*registration
	if len(o.owners) > 0 {
		owners = make(map[digest.Digest][]*registration, len(o.owners))
		maps.Copy(owners, o.owners)
	}
	o.owners, o.room = owners, len(owners)
}

func (o *ownerIndex) removeBatch(j *Job, batch []digest.Digest) (orphans []*state) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, dgst := range batch {
		var rest []*registration
		for _, reg := range o.owners[dgst] {
			if reg.job != j {
				rest = append(rest, reg)
			}
		}
		if len(rest) > 0 {
			o.owners[dgst] = rest
			continue
		}
		delete(o.owners, dgst)
		orphans = append(orphans, o.kept[dgst]...)
		delete(o.kept, dgst)
	}
	o.shrink()
	return orphans
}

// lookup returns the owners of dgst, oldest first. The returned slice must not
// be changed.
func (o *ownerIndex) lookup(dgst digest.Digest) []*registration {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.owners[dgst]
}

// keep reports if owners keep st, which nothing else references any more, and
// remembers it for the time when the last of them is discarded. If it returns
// false, st is about to be deleted.
func (o *ownerIndex) keep(st *state) bool {
	failed := st.opFailed()
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.failed[st]; ok {
		failed = true
		delete(o.failed, st)
	}
	o.dropped = o.dropped || failed
	states := slices.DeleteFunc(o.kept[st.origDigest], func(s *state) bool { return s == st })
	keep := !failed && len(o.owners[st.origDigest]) > 0
	if keep {
		states = append(states, st)
	} else {
		o.forgetMerges(st.origDigest)
	}
	if len(states) == 0 {
		delete(o.kept, st.origDigest)
		return keep
	}
	if o.kept == nil {
		o.kept = map[digest.Digest][]*state{}
	}
	o.kept[st.origDigest] = states
	return keep
}

// fail marks an active state as one that is not to be kept.
func (o *ownerIndex) fail(st *state) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = map[*state]struct{}{}
	}
	o.failed[st] = struct{}{}
}

func (o *ownerIndex) hasFailed(st *state) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	_, ok := o.failed[st]
	return ok
}

func (o *ownerIndex) anyFailed() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.failed) > 0
}

func (o *ownerIndex) anyDropped() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.dropped
}

func (o *ownerIndex) forgetDropped() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropped = false
}

// Register makes the job an owner of e and all its ancestors, without building
// them: any other job that builds one of these vertices before this job is
// discarded can use the session of this job and the cache imports of e, and
// what it computes stays available. A failed Register leaves the vertices that
// it got to until the job is discarded. It takes no lock that is held while a
// graph is loaded or scheduled.
//
// Returns ErrJobDiscarded when the job has already ended.
func (j *Job) Register(ctx context.Context, e Edge) error {
	o := &j.list.owners
	caches := e.Vertex.Options().CacheSources
	describe := func() []VertexInfo { return describeGraph(e.Vertex) }
	err := o.register(ctx, j, o.missing(j, e.Vertex, caches), caches, describe)
	j.noteRegistered(ctx, e.Vertex.Digest(), err)
	return err
}

// RegisterDigests is Register for vertices that have not been loaded. They are
// given by LLB digest, each after its inputs. All inputs are included or owned
// by the job already. Somebody who looks at the graph is told by describe what
// they are.
func (j *Job) RegisterDigests(ctx context.Context, vertices []digest.Digest, describe func() []VertexInfo) error {
	err := j.list.owners.register(ctx, j, vertices, nil, describe)
	var result digest.Digest
	if len(vertices) > 0 {
		result = vertices[len(vertices)-1]
	}
	j.noteRegistered(ctx, result, err)
	return err
}

// Owns reports if the job owns the vertex, and with it all its ancestors.
func (j *Job) Owns(vertex digest.Digest) bool {
	o := &j.list.owners
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.has(vertex, j, nil)
}

// releaseOrphans deletes states that were kept for an owner that is gone,
// unless they have been referenced again.
func (jl *Solver) releaseOrphans(states []*state) {
	if len(states) == 0 {
		return
	}
	jl.mu.Lock()
	defer jl.mu.Unlock()
	for _, st := range states {
		key := st.vtx.Digest()
		if jl.actives[key] != st {
			continue
		}
		st.mu.Lock()
		jl.deleteIfUnreferenced(key, st)
		st.mu.Unlock()
	}
}

// keepOwned decides if a state without jobs and parents stays because of its
// owners. The jobs that have been building it are gone, so their progress is
// disconnected; an owner that evaluates the vertex later is connected then and
// gets all that was written.
// called with solver lock
func (jl *Solver) keepOwned(st *state) bool {
	if !jl.owners.keep(st) {
		return false
	}
	st.allPwMu.Lock()
	defer st.allPwMu.Unlock()
	for pw := range st.allPw {
		// the writer of a state whose edge was merged into this one stays
		if _, ok := pw.(*progress.MultiWriter); !ok {
			st.mpw.Delete(pw)
			delete(st.allPw, pw)
		}
	}
	return true
}

// inheritOwners hands the owners of src to s in an edge merge.
// called with solver lock
func (s *state) inheritOwners(src *state) {
	logInherited(s, src, s.solver.owners.inherit(s.origDigest, src.origDigest))
}
