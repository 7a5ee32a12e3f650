package solver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

// aheadHangs bounds tests that hang.
const aheadHangs = time.Minute

func noWait(context.Context) error { return nil }

// chainedAhead returns the result v of j, which is chained on base.
func chainedAhead(t *testing.T, j *Job, v Vertex, base *Job) *Ahead {
	t.Helper()
	require.NoError(t, j.Register(Edge{Vertex: v}))
	return j.EvaluateAhead(t.Context(), AheadOpt{Edge: Edge{Vertex: v}, Bases: []*Job{base}, Ready: noWait})
}

// waitBuilt waits until v has been built ahead, under any of its digests.
func waitBuilt(t *testing.T, s *Solver, v Vertex) {
	t.Helper()
	built := func(st *state) bool {
		st.mu.RLock()
		ahead := false
		for j := range st.jobs {
			ahead = ahead || j.owner.ahead.of != nil
		}
		st.mu.RUnlock()
		if !ahead || st.vtx.Name() != v.Name() {
			return false
		}
		e := st.getEdge(0)
		s.s.mu.Lock()
		defer s.s.mu.Unlock()
		return e.isComplete()
	}
	require.Eventually(t, func() bool {
		s.mu.RLock()
		states := slices.Collect(maps.Values(s.actives))
		s.mu.RUnlock()
		return slices.ContainsFunc(states, built)
	}, aheadHangs, time.Millisecond, "%s is not complete", v.Name())
}

// TestAheadLeaves builds vertices ahead that the solver knows already, under any of
// their digests or merged into others. Nothing is left when the result is given up.
func TestAheadLeaves(t *testing.T) {
	t.Parallel()
	dep := newVtxSession(vtxOpt{name: "dep", cacheKeySeed: "dep"})
	depTwin := newVtxSession(vtxOpt{name: "dep", cacheKeySeed: "dep", ignoreCache: true})
	on := func(dep Vertex, ignoreCache bool) *vtxSession {
		return newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", inputs: []Edge{{Vertex: dep}}, ignoreCache: ignoreCache})
	}
	// with another digest and the same cache key
	merges := newVtxSession(vtxOpt{name: "other", cacheKeySeed: "v", inputs: []Edge{{Vertex: newVtxSession(vtxOpt{name: "other dep", cacheKeySeed: "dep"})}}})
	for _, tc := range []struct {
		name     string
		stranger Vertex // what another build has built
		ahead    Vertex
	}{
		{"new", nil, on(dep, false)},
		{"the same", on(dep, false), on(dep, false)},
		{"without cache", nil, on(depTwin, true)},
		{"without cache, known with cache", on(dep, false), on(depTwin, true)},
		{"with cache, known without cache", on(depTwin, true), on(dep, false)},
		{"half of it without cache", on(dep, true), on(depTwin, false)},
		{"merged", merges, on(dep, false)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestSolver(t)
			stranger := newTestJob(t, s, "stranger")
			if tc.stranger != nil {
				require.NoError(t, buildVertex(t, stranger, tc.stranger))
			}
			base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
			a := chainedAhead(t, child, tc.ahead, base)
			base.Evaluated(nil)
			waitBuilt(t, s, tc.ahead)
			a.Release()

			s.mu.RLock()
			for dgst, st := range s.actives {
				for j := range st.jobs {
					require.Nil(t, j.owner.ahead.of, "%s %s is still built ahead", st.vtx.Name(), dgst)
				}
			}
			s.mu.RUnlock()
			for _, j := range []*Job{child, base, stranger} {
				require.NoError(t, j.Discard())
			}
			requireEmpty(t, s)
		})
	}
}

// TestAheadLeavesDependencies lets a build share a step with one that runs ahead, but
// not the input of that step: the step was loaded after a build without cache, and has
// that build's input. The build continues when what ran ahead is gone.
func TestAheadLeavesDependencies(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"stranger", "another that runs ahead", "the same client"} {
		t.Run(other, func(t *testing.T) {
			t.Parallel()
			s := newTestSolver(t)
			dep := newVtxSession(vtxOpt{name: "dep", cacheKeySeed: "dep"})
			depNoCache := newVtxSession(vtxOpt{name: "dep", cacheKeySeed: "dep", ignoreCache: true})
			step := newVtxSession(vtxOpt{name: "step", cacheKeySeed: "step", inputs: []Edge{{Vertex: dep}}})
			// these are completed later, when everything that ran ahead is gone
			last := newVtxSession(vtxOpt{name: "last", cacheKeySeed: "last", inputs: []Edge{{Vertex: step}}})

			base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
			a := chainedAhead(t, child, step, base)
			base.Evaluated(nil)
			waitBuilt(t, s, step)
			noCache := newTestJob(t, s, "no cache")
			require.NoError(t, buildVertex(t, noCache, depNoCache))

			j, of := newTestJob(t, s, "other"), (*Ahead)(nil)
			load := func(j *Job) {
				_, err := s.load(t.Context(), last, nil, j)
				require.NoError(t, err)
			}
			switch other {
			case "another that runs ahead":
				of = chainedAhead(t, j, last, base)
				waitBuilt(t, s, last)
			case "the same client":
				require.NoError(t, a.Evaluate(t.Context(), func(context.Context) error {
					load(child)
					return nil
				}))
			default:
				load(j)
			}
			a.Release()
			require.NoError(t, noCache.Discard())

			st := s.getState(Edge{Vertex: step})
			require.NotNil(t, st)
			in := s.getState(st.vtx.Inputs()[0])
			require.NotNil(t, in, "the input of the step is gone")
			require.Equal(t, st.jobs, in.jobs)
			if other == "stranger" {
				require.NoError(t, buildVertex(t, j, last))
			}
			if of != nil {
				of.Release()
			}
			for _, j := range []*Job{j, child, base} {
				require.NoError(t, j.Discard())
			}
			requireEmpty(t, s)
		})
	}
}

// TestAheadLeavesMerged lets a build join a step whose edge was merged into another
// one before.
func TestAheadLeavesMerged(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	step, twin := newVtxSession(vtxOpt{name: "step"}), newVtxSession(vtxOpt{name: "twin", inputs: []Edge{{Vertex: newVtxSession(vtxOpt{name: "of twin"})}}})
	ahead := newAheadJob(newTestJob(t, s, "child"))
	owner := newTestJob(t, s, "owner")
	for v, j := range map[Vertex]*Job{step: ahead, twin: owner} {
		_, err := s.load(t.Context(), v, nil, j)
		require.NoError(t, err)
	}
	mergeEdges(s, step, twin)
	late := newTestJob(t, s, "late")
	_, err := s.load(t.Context(), step, nil, late)
	require.NoError(t, err)
	ahead.leave(step)
	require.NoError(t, owner.Discard())
	require.NotNil(t, s.getState(Edge{Vertex: twin}))
	require.NotNil(t, s.getState(twin.Inputs()[0]))
	require.NoError(t, buildVertex(t, late, step))
	require.NoError(t, late.Discard())
	requireEmpty(t, s)
}

// TestAheadTakesOver lets the client join what runs ahead. The client's job keeps the
// vertices when the second job leaves them, and its progress shows each vertex once.
func TestAheadTakesOver(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	v := newVtxSession(vtxOpt{name: "v"})
	a := chainedAhead(t, child, v, base)
	base.Evaluated(nil)
	waitBuilt(t, s, v)
	require.NoError(t, a.Evaluate(t.Context(), func(context.Context) error { return buildVertex(t, child, v) }))
	require.Equal(t, [][]string{{"child"}}, v.execs())
	st := s.getState(Edge{Vertex: v})
	require.NotNil(t, st)
	require.Equal(t, map[*Job]struct{}{child: {}}, st.jobs)
	require.Len(t, st.allPw, 1)
	a.Release()
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestAheadValues lets a step ask the job that builds it ahead for values of the
// client's job.
func TestAheadValues(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	child.SetValue("key", "value of child")
	_, release, err := child.ResolverCache().Lock("resolved")
	require.NoError(t, err)
	require.NoError(t, release("by the frontend of child"))

	var values, resolved []any
	var sessions []string
	v := &vtxFunc{vertex: vtx(vtxOpt{name: "v"}), exec: func(jobCtx JobContext) error {
		st := jobCtx.(*state)
		if err := st.builder().EachValue(t.Context(), "key", func(v any) error { values = append(values, v); return nil }); err != nil {
			return err
		}
		found, release, err := jobCtx.ResolverCache().Lock("resolved")
		resolved = found
		sessions = session.AllSessionIDs(jobCtx.Session())
		if err != nil {
			return errors.WithStack(err)
		}
		return release(nil)
	}}
	a := chainedAhead(t, child, v, base)
	child.ChainOn(nil)
	base.Evaluated(nil)
	waitBuilt(t, s, v)
	require.Equal(t, []any{"value of child"}, values)
	require.Equal(t, []any{"by the frontend of child"}, resolved)
	require.Equal(t, []string{"child"}, sessions)

	// the step asks both jobs, and neither waits for the other
	require.NoError(t, a.Evaluate(t.Context(), func(context.Context) error {
		res, err := child.Build(t.Context(), Edge{Vertex: v})
		require.NoError(t, err)
		require.NoError(t, res.Release(t.Context()))
		_, release, err := s.getState(Edge{Vertex: v}).ResolverCache().Lock("resolved")
		require.NoError(t, err)
		return release(nil)
	}))
}

// vtxFunc is a vertex whose op calls a function.
type vtxFunc struct {
	*vertex
	exec func(JobContext) error
}

func (v *vtxFunc) Sys() any { return v }

func (v *vtxFunc) Exec(ctx context.Context, jobCtx JobContext, inputs []Result) ([]Result, error) {
	if err := v.exec(jobCtx); err != nil {
		return nil, err
	}
	return v.vertex.Exec(ctx, jobCtx, inputs)
}

// slotLog is a worker with a number of slots. It records which ops had one.
type slotLog struct {
	sem *semaphore.Weighted

	mu      sync.Mutex
	order   []string
	running int
	most    int
}

// vtxSlot is a vertex whose op takes a slot.
type vtxSlot struct {
	*vertex
	log  *slotLog
	wait chan struct{} // not nil if the op is held
}

func (v *vtxSlot) Sys() any { return v }

func (v *vtxSlot) SpareSlot() bool {
	if !v.log.sem.TryAcquire(2) {
		return false
	}
	v.log.sem.Release(2)
	return true
}

func (v *vtxSlot) Acquire(ctx context.Context) (ReleaseFunc, error) {
	if err := v.log.sem.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	v.log.mu.Lock()
	defer v.log.mu.Unlock()
	v.log.order = append(v.log.order, v.Name())
	v.log.running++
	v.log.most = max(v.log.most, v.log.running)
	return func() {
		v.log.mu.Lock()
		v.log.running--
		v.log.mu.Unlock()
		v.log.sem.Release(1)
	}, nil
}

func (v *vtxSlot) Exec(ctx context.Context, jobCtx JobContext, inputs []Result) ([]Result, error) {
	if v.wait != nil {
		<-v.wait
	}
	return v.vertex.Exec(ctx, jobCtx, inputs)
}

func (l *slotLog) ran() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.order...)
}

func (l *slotLog) step(name string, held bool, inputs ...Vertex) *vtxSlot {
	v := &vtxSlot{vertex: vtx(vtxOpt{name: name}), log: l}
	if held {
		v.wait = make(chan struct{})
	}
	for _, in := range inputs {
		v.opt.inputs = append(v.opt.inputs, Edge{Vertex: in})
	}
	return v
}

// TestAheadResolverCache resolves a key in two vertices at once, which a job and the
// one that builds ahead for it build together. Each vertex locks what it locks for the
// one job: with a cache of each, both could hold one and wait for the other.
func TestAheadResolverCache(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "job")
	ahead := newAheadJob(j)
	var states []*state
	for _, name := range []string{"a", "b"} {
		v := newVtxSession(vtxOpt{name: name})
		for _, j := range []*Job{j, ahead} {
			_, err := s.load(t.Context(), v, nil, j)
			require.NoError(t, err)
		}
		states = append(states, s.getState(Edge{Vertex: v}))
	}
	var wg sync.WaitGroup
	for i, st := range states {
		wg.Go(func() {
			for round := range 5000 {
				_, release, err := st.Lock("key")
				assert.NoError(t, err)
				assert.NoError(t, release(nil), "state %d, round %d", i, round)
			}
		})
	}
	wg.Wait()
}

// TestAheadOneSlot uses a worker with one slot. Steps ahead do not take the slot between
// steps of base, but only when their client asks for them.
func TestAheadOneSlot(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	l := &slotLog{sem: semaphore.NewWeighted(1)}
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	own := l.step("own", false)
	b1 := l.step("b1", true)
	b2 := l.step("b2", false, b1)
	a := chainedAhead(t, child, own, base)
	base.Evaluated(nil)
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, buildVertex(t, base, b2)) })
	require.Eventually(t, func() bool { return len(l.ran()) == 1 }, aheadHangs, time.Millisecond)
	require.Equal(t, []string{"b1"}, l.ran())
	close(b1.wait)
	wg.Wait()
	time.Sleep(3 * slotInterval) // the step ahead does not take the free slot
	require.Equal(t, []string{"b1", "b2"}, l.ran())
	require.NoError(t, a.Evaluate(t.Context(), func(context.Context) error { return buildVertex(t, child, own) }))
	require.Equal(t, []string{"b1", "b2", "own"}, l.ran())
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestAheadLeavesSlot uses a worker with three slots. Any number of steps ahead takes
// two slots, and a step of base gets one at once.
func TestAheadLeavesSlot(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	l := &slotLog{sem: semaphore.NewWeighted(3)}
	base := newTestJob(t, s, "base")
	var children []*Job
	var results []*Ahead
	var steps []*vtxSlot
	for i := range 6 {
		j := newTestJob(t, s, fmt.Sprintf("child%d", i))
		step := l.step(fmt.Sprintf("own%d", i), true)
		children, steps = append(children, j), append(steps, step)
		results = append(results, chainedAhead(t, j, step, base))
	}
	base.Evaluated(nil)
	require.Eventually(t, func() bool { return len(l.ran()) == 2 }, aheadHangs, time.Millisecond)
	time.Sleep(3 * slotInterval)
	require.Len(t, l.ran(), 2)
	for i := range 5 {
		require.NoError(t, buildVertex(t, base, l.step(fmt.Sprintf("b%d", i), false)))
	}
	for _, step := range steps {
		close(step.wait)
	}
	for i, a := range results {
		require.NoError(t, a.Evaluate(t.Context(), func(context.Context) error { return buildVertex(t, children[i], steps[i]) }))
	}
	require.LessOrEqual(t, l.most, 3)
	for _, j := range append(children, base) {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

// TestAheadCanceledWithoutSlot cancels a result that waits for a slot.
func TestAheadCanceledWithoutSlot(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	l := &slotLog{sem: semaphore.NewWeighted(1)}
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	own := l.step("own", false)
	a := chainedAhead(t, child, own, base)
	base.Evaluated(nil)
	require.Eventually(t, func() bool { return s.getState(Edge{Vertex: own}) != nil }, aheadHangs, time.Millisecond)
	a.Release()
	require.Empty(t, l.ran())
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestIsAhead uses a vertex of a nested build, which jobs build only through its
// parent.
func TestIsAhead(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	client := newTestJob(t, s, "client")
	ahead := newAheadJob(client)
	parent, nested := newVtxSession(vtxOpt{name: "parent"}), newVtxSession(vtxOpt{name: "nested"})
	loaded, err := s.load(t.Context(), parent, nil, ahead)
	require.NoError(t, err)
	_, err = s.load(t.Context(), nested, loaded, nil)
	require.NoError(t, err)
	st := s.getState(Edge{Vertex: nested})
	require.True(t, st.isAhead())

	_, err = s.load(t.Context(), parent, nil, client)
	require.NoError(t, err)
	require.False(t, st.isAhead(), "the client builds it as well")
	require.NoError(t, client.Discard())
	require.True(t, st.isAhead())
	ahead.leave(parent)
	require.False(t, st.isAhead(), "it is no longer built")
	requireEmpty(t, s)
}

// TestUnsplitResultProxy unsplits a ref that was split twice.
func TestUnsplitResultProxy(t *testing.T) {
	t.Parallel()
	ref := &struct{ ResultProxy }{}
	a, b := SplitResultProxy(ref)
	_, c := SplitResultProxy(b)
	require.Same(t, ref, UnsplitResultProxy(a))
	require.Same(t, ref, UnsplitResultProxy(c))
	require.Same(t, ref, UnsplitResultProxy(ref))
}
