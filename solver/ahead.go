package solver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
)

// A client that does not evaluate a result until its base has been evaluated costs
// time and gains nothing: the result is loaded, and the base lends its session. So
// the solver can evaluate the result ahead of its client. It starts when the first
// base evaluates. It stops when the client has evaluated the result, when no base
// evaluates any more, or when one has failed.
//
// A second job builds what runs ahead. It has the session, the values and the progress
// of the first. When the client evaluates the result, the first job joins the vertices
// that the second one builds, and the second leaves them. If the client never evaluates
// the result, or the base fails, the second job leaves and nothing is left of what it
// did: the client evaluates as if the second job had never existed. The same holds for
// a failure. No state keeps it; it waits for the client in the Ahead.
//
// Lock order: nothing here is called with a lock of the solver but chains.mu, which
// protects the relation of jobs and results. Its size depends on the number of jobs
// that are chained on each other.

// jobAhead is the state of a job for evaluation ahead: its results, and the results
// that are chained on it. It is protected by chains.mu.
type jobAhead struct {
	// of is the job that this one builds ahead for, and nil for a client's job. It
	// is set when the job is created.
	of *Job
	// takenOver are states that a job with of has not loaded. They took over edges of
	// its vertices, or are dependencies of such states. The slice is protected by
	// jobOwner.mu. Callers that append also hold Solver.mu, for reading or writing.
	takenOver []*state

	evaluated bool                // the client is evaluating a result, or has evaluated one
	failed    bool                // an evaluation failed or was canceled
	results   map[*Ahead]struct{} // results of this job that are not given up
	chained   map[*Ahead]struct{} // results of other jobs that contain one of this job's
}

type aheadPhase int

const (
	aheadWaiting aheadPhase = iota // for a base to evaluate
	aheadRunning                   // until it is joined or stopped; it keeps its result
	aheadFailed                    // the error waits for the client
	aheadOver                      // never starts again
)

// Ahead is a result of a job that can be evaluated ahead of the client.
type Ahead struct {
	job   *Job
	edge  Edge
	ready func(context.Context) error

	ctx    context.Context
	cancel context.CancelCauseFunc

	// protected by chains.mu
	phase      aheadPhase
	bases      []*Job // active bases
	baseFailed bool
	err        error
	done       chan struct{} // closed when nothing is left of what ran, nil if nothing started
}

// AheadOpt describes a result.
type AheadOpt struct {
	Edge  Edge
	Bases []*Job                      // jobs whose results are part of this one
	Ready func(context.Context) error // called before the edge is built
}

// EvaluateAhead returns the result for the client of the job. The client evaluates it
// with Ahead.Evaluate and gives it up with Ahead.Release. The result is evaluated ahead
// while one of the bases evaluates, and not at all without bases.
func (j *Job) EvaluateAhead(ctx context.Context, opt AheadOpt) *Ahead {
	a := &Ahead{job: j, edge: opt.Edge, ready: opt.Ready}
	a.ctx, a.cancel = context.WithCancelCause(context.WithoutCancel(ctx))

	c := &j.list.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.Err() != nil {
		a.stop()
		return a
	}
	for _, base := range opt.Bases {
		if base.Err() != nil || slices.Contains(a.bases, base) {
			continue
		}
		a.bases = append(a.bases, base)
		add(&base.owner.ahead.chained, a)
		// a vertex fails if jobs of different versions build it together
		a.baseFailed = a.baseFailed || base.owner.ahead.failed || !sameCompatibilityVersion(j, base)
	}
	add(&j.owner.ahead.results, a)
	a.update()
	return a
}

func add[K comparable](m *map[K]struct{}, k K) {
	if *m == nil {
		*m = map[K]struct{}{}
	}
	(*m)[k] = struct{}{}
}

func sameCompatibilityVersion(j, other *Job) bool {
	v1, err1 := j.CompatibilityVersion()
	v2, err2 := other.CompatibilityVersion()
	return v1 == v2 && err1 == nil && err2 == nil
}

// Evaluated tells the job that its client evaluates a result, or that an evaluation
// has failed with err. Results that are chained on the job then start, or stop.
func (j *Job) Evaluated(err error) {
	c := &j.list.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &j.owner.ahead
	o.evaluated = true
	if err != nil {
		o.failed = true
		for a := range o.chained {
			a.baseFailed = true
		}
	}
	j.updateChained()
}

// evaluates reports if results that are chained on the job can run.
// called with chains.mu
func (j *Job) evaluates() bool {
	o := &j.owner.ahead
	if o.evaluated {
		return true
	}
	for a := range o.results {
		if a.phase == aheadRunning {
			return true
		}
	}
	return false
}

// updateChained starts or stops what is chained on the job, after it has begun or
// ceased to evaluate.
// called with chains.mu
func (j *Job) updateChained() {
	for a := range j.owner.ahead.chained {
		a.update()
	}
}

// called with chains.mu
func (a *Ahead) update() {
	due := !a.baseFailed && slices.ContainsFunc(a.bases, (*Job).evaluates)
	switch {
	case due && a.phase == aheadWaiting:
		a.phase, a.done = aheadRunning, make(chan struct{})
		a.job.list.chains.ahead.used.Store(true)
		go a.run()
	case !due && (a.phase == aheadRunning || a.phase == aheadFailed):
		a.stop()
	default:
		return
	}
	a.job.updateChained()
}

// stop cancels what runs ahead. a.done is closed when nothing of it is left.
// called with chains.mu
func (a *Ahead) stop() {
	a.phase, a.err = aheadOver, nil
	a.cancel(errors.WithStack(context.Canceled))
}

// run evaluates the result and keeps it until it is stopped.
func (a *Ahead) run() {
	defer close(a.done)
	bklog.G(a.ctx).WithField("job", a.job.id).WithField("vertex", a.edge.Vertex.Digest()).Debug("evaluating ahead of the client")
	j := newAheadJob(a.job)
	res, err := a.build(j)
	if err == nil {
		<-a.ctx.Done()
		res.Release(context.WithoutCancel(a.ctx))
	}
	j.leave(a.edge.Vertex)
	if err != nil { // which no state keeps any more
		a.fail(err)
	}
}

func (a *Ahead) build(j *Job) (CachedResult, error) {
	if err := a.ready(a.ctx); err != nil {
		return nil, err
	}
	return j.Build(a.ctx, a.edge)
}

// fail keeps the error for the client. If the evaluation was canceled, here or by
// another build with a common step, the client evaluates again.
func (a *Ahead) fail(err error) {
	c := &a.job.list.chains
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.phase != aheadRunning {
		return
	}
	if errdefs.IsCanceled(a.ctx, err) {
		a.stop()
	} else {
		a.phase, a.err = aheadFailed, err
	}
	a.job.updateChained()
}

// Err returns the error of the evaluation ahead, if an evaluation by the client would
// return the same.
func (a *Ahead) Err() error {
	if a == nil {
		return nil
	}
	c := &a.job.list.chains
	c.mu.RLock()
	defer c.mu.RUnlock()
	return a.err
}

// Evaluate calls f, which evaluates the result for the client. f joins what runs
// ahead. From then on the client decides: if it cancels f, the steps are canceled.
func (a *Ahead) Evaluate(ctx context.Context, f func(context.Context) error) error {
	c := &a.job.list.chains
	c.mu.Lock()
	if a.phase == aheadWaiting {
		a.stop()
	}
	over, done := a.phase == aheadOver, a.done
	c.mu.Unlock()
	if over && done != nil {
		select {
		case <-done: // so that f does not join canceled steps
		case <-ctx.Done():
			return errors.WithStack(context.Cause(ctx))
		}
	}
	a.job.Evaluated(nil)
	err := f(ctx)
	if err != nil {
		a.job.Evaluated(err)
	}
	a.giveUp()
	return err
}

// Release gives the result up, and waits until nothing runs ahead for it. It also
// stops the other results of the job: refs are released at the end of a build, and
// none of the results is needed any more.
func (a *Ahead) Release() {
	c := &a.job.list.chains
	c.mu.Lock()
	for other := range a.job.owner.ahead.results {
		other.stop()
	}
	c.mu.Unlock()
	a.giveUp()
}

func (a *Ahead) giveUp() {
	c := &a.job.list.chains
	c.mu.Lock()
	a.stop()
	a.unchain()
	delete(a.job.owner.ahead.results, a)
	a.job.updateChained()
	done := a.done
	c.mu.Unlock()
	if done != nil {
		<-done
	}
}

// called with chains.mu
func (a *Ahead) unchain() {
	for _, base := range a.bases {
		delete(base.owner.ahead.chained, a)
	}
	a.bases = nil
}

// endAhead ends what runs ahead for the job and because of it, without waiting.
// called with chains.mu
func (j *Job) endAhead() {
	o := &j.owner.ahead
	for a := range o.results {
		a.stop()
		a.unchain()
	}
	chained := o.chained
	o.evaluated, o.results, o.chained = false, nil, nil
	for a := range chained {
		a.bases = slices.DeleteFunc(a.bases, func(base *Job) bool { return base == j })
		a.update()
	}
}

// newAheadJob returns a job that builds ahead for j. The solver does not list the job,
// because its vertices are part of j's progress.
func newAheadJob(j *Job) *Job {
	ahead := &Job{
		list:          j.list,
		pw:            j.pw,
		id:            j.id,
		startedTime:   j.startedTime,
		resolverCache: j.resolverCache,
		SessionID:     j.SessionID,
		uniqueID:      j.uniqueID,
	}
	j.values.Range(func(k string, v any) bool {
		ahead.values.Store(k, v)
		return true
	})
	ahead.owner.ahead.of = j
	return ahead
}

// distinctCaches returns each cache once. A job that builds ahead shares the cache of
// its client's job, and a vertex that both build must not lock it twice.
func distinctCaches(rcs []ResolverCache) []ResolverCache {
	var out []ResolverCache
	for _, rc := range rcs {
		if !slices.Contains(out, rc) {
			out = append(out, rc)
		}
	}
	return out
}

// takeOver records that s has the job although the job has not loaded it.
func (j *Job) takeOver(s *state) {
	j.owner.mu.Lock()
	defer j.owner.mu.Unlock()
	j.owner.ahead.takenOver = append(j.owner.ahead.takenOver, s)
}

// leave removes a job that builds ahead from all states that have it. It does what
// Discard does, but looks only at states that can have the job.
func (j *Job) leave(v Vertex) {
	var keys []digest.Digest
	visited := map[Vertex]struct{}{}
	var collect func(Vertex)
	collect = func(v Vertex) {
		if _, ok := visited[v]; ok {
			return
		}
		visited[v] = struct{}{}
		// loadUnlocked uses one of these two digests
		keys = append(keys, v.Digest(), digest.FromBytes(fmt.Appendf(nil, "%s-ignorecache", v.Digest())))
		for _, in := range v.Inputs() {
			collect(in.Vertex)
		}
	}
	collect(v)

	jl := j.list
	jl.mu.Lock()
	defer jl.mu.Unlock()
	states := j.owner.ahead.takenOver
	for _, k := range keys {
		if st, ok := jl.actives[k]; ok {
			states = append(states, st)
		}
	}
	for _, st := range states {
		st.mu.Lock()
		_, ok := st.jobs[j]
		delete(st.jobs, j)
		st.mu.Unlock()
		if ok {
			st.keepDependencies()
		}
	}
	for _, st := range states {
		st.mu.Lock()
		if k := st.vtx.Digest(); jl.actives[k] == st {
			jl.deleteIfUnreferenced(k, st)
		}
		st.mu.Unlock()
	}
}

// keepDependencies adds the jobs of s to the states that s depends on. The jobs need
// not have loaded these states. The input of a vertex that was loaded earlier can be
// another state than the job's own, which ignores the cache. And the edge of an input
// can have been taken over before the job joined.
// called with solver lock
func (s *state) keepDependencies() {
	s.mu.RLock()
	jobs := slices.Collect(maps.Keys(s.jobs))
	dependencies := make([]digest.Digest, 0, len(s.vtx.Inputs()))
	for _, in := range s.vtx.Inputs() {
		dependencies = append(dependencies, in.Vertex.Digest())
	}
	for _, e := range s.edges {
		for e.owner != nil {
			e = e.owner
			dependencies = append(dependencies, e.edge.Vertex.Digest())
		}
	}
	s.mu.RUnlock()

	for _, dgst := range dependencies {
		dep, ok := s.solver.actives[dgst]
		if !ok || dep == s {
			continue
		}
		added := false
		dep.mu.Lock()
		for _, j := range jobs {
			if _, ok := dep.jobs[j]; ok {
				continue
			}
			dep.jobs[j], added = struct{}{}, true
			if j.owner.ahead.of != nil {
				j.takeOver(dep)
			}
		}
		dep.mu.Unlock()
		if added {
			dep.keepDependencies()
		}
	}
}

// slotOp is an op that takes one of a limited number of slots.
type slotOp interface {
	// SpareSlot reports if the op can take a slot and leave another one free.
	SpareSlot() bool
}

// aheadSlots is how a solver gives slots to what runs ahead.
type aheadSlots struct {
	used atomic.Bool // something has run ahead
	mu   sync.Mutex  // held by the op that takes a slot ahead, so that no two count on the same one
}

const slotInterval = 10 * time.Millisecond

// acquire acquires the resources of op. As long as s is only built ahead, op leaves
// one slot free. If there is one slot, steps that clients wait for never wait for
// steps ahead; if there are more, a slot is always left for them.
//
// acquire polls, because it would have to wait for two things at once: a slot, and a
// job of a client, which can join s at any time.
func (s *state) acquire(ctx context.Context, op Op) (ReleaseFunc, error) {
	slot, ok := op.(slotOp)
	if !ok || !s.solver.chains.ahead.used.Load() {
		return op.Acquire(ctx)
	}
	for s.isAhead() {
		if mu := &s.solver.chains.ahead.mu; mu.TryLock() {
			if slot.SpareSlot() {
				defer mu.Unlock()
				return op.Acquire(ctx)
			}
			mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(slotInterval):
		}
	}
	return op.Acquire(ctx)
}

// isAhead reports if all jobs that build s, or a vertex that s is a part of, do so
// ahead of their clients.
func (s *state) isAhead() bool {
	s.solver.mu.RLock()
	defer s.solver.mu.RUnlock()

	ahead := false
	visited := map[*state]struct{}{}
	var visit func(*state) bool
	visit = func(s *state) bool {
		visited[s] = struct{}{}
		s.mu.RLock()
		for j := range s.jobs {
			if j.owner.ahead.of == nil {
				s.mu.RUnlock()
				return false
			}
			ahead = true
		}
		s.mu.RUnlock()
		for dgst := range s.parents {
			parent, ok := s.solver.actives[dgst]
			if _, done := visited[parent]; ok && !done && !visit(parent) {
				return false
			}
		}
		return true
	}
	return visit(s) && ahead
}

// UnsplitResultProxy returns the proxy that SplitResultProxy was called with to get
// ref, or ref.
func UnsplitResultProxy(ref ResultProxy) ResultProxy {
	for {
		split, ok := ref.(*splitResultProxy)
		if !ok {
			return ref
		}
		ref = split.ResultProxy
	}
}
