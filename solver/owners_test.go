package solver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/llbsolver/compat"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// vtxSession is a vertex whose op records the sessions that it can ask.
type vtxSession struct {
	*vertex
	mu   sync.Mutex
	seen [][]string
	fail atomic.Bool
}

func newVtxSession(opt vtxOpt) *vtxSession {
	return &vtxSession{vertex: vtx(opt)}
}

func (v *vtxSession) Sys() any {
	return v
}

func (v *vtxSession) Exec(ctx context.Context, jobCtx JobContext, inputs []Result) ([]Result, error) {
	v.mu.Lock()
	v.seen = append(v.seen, session.AllSessionIDs(jobCtx.Session()))
	v.mu.Unlock()
	if v.fail.Load() {
		return nil, errors.Errorf("op %s failed", v.Name())
	}
	return v.vertex.Exec(ctx, jobCtx, inputs)
}

func (v *vtxSession) execs() [][]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}

func newTestSolver(t testing.TB) *Solver {
	s := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver})
	t.Cleanup(s.Close)
	return s
}

// newTestJob creates a job whose session has the id of the job.
func newTestJob(t testing.TB, s *Solver, id string) *Job {
	j, err := s.NewJob(id)
	require.NoError(t, err)
	j.SessionID = id
	return j
}

func buildVertex(t *testing.T, j *Job, v Vertex) error {
	t.Helper()
	res, err := j.Build(t.Context(), Edge{Vertex: v})
	if err == nil {
		require.NoError(t, res.Release(context.WithoutCancel(t.Context())))
	}
	return err
}

func requireEmpty(t *testing.T, s *Solver) {
	t.Helper()
	s.mu.RLock()
	defer s.mu.RUnlock()
	require.Empty(t, s.actives, "active states are left")
	s.chains.mu.RLock()
	defer s.chains.mu.RUnlock()
	require.Nil(t, s.chains.results, "results are left")
	for _, j := range s.jobs {
		require.Nil(t, j.owner.vertices, "vertices of %s are left", j.id)
		require.Empty(t, j.owner.chained, "jobs are chained on %s", j.id)
		require.False(t, j.HasBases(), "%s is chained", j.id)
		require.Empty(t, j.owner.ahead.results, "results of %s are left", j.id)
		require.Empty(t, j.owner.ahead.chained, "results are chained on %s", j.id)
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	require.Empty(t, s.index.backRefs, "edges are left in the index")
}

// sessionsOf returns the sessions that v would ask now.
func sessionsOf(s *Solver, v Vertex) []string {
	st := s.getState(Edge{Vertex: v})
	if st == nil {
		return nil
	}
	return session.AllSessionIDs(st.Session())
}

// resultOf returns bytes that stand for the encoded op of a result.
func resultOf(v Vertex) []byte {
	return []byte(v.Digest())
}

// solved registers v with the job, and records that its client received the result.
func solved(t *testing.T, j *Job, v Vertex) {
	t.Helper()
	require.NoError(t, j.Register(Edge{Vertex: v}))
	j.AddResult(resultOf(v))
}

func TestChainLendsSession(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "base", inputs: []Edge{{Vertex: in}}})
	own := newVtxSession(vtxOpt{name: "own", inputs: []Edge{{Vertex: v}}})

	base := newTestJob(t, s, "base")
	solved(t, base, v)
	require.Empty(t, s.actives, "registering must not create states")

	child := newTestJob(t, s, "child")
	child.ChainOn(resultOf(v))
	require.NoError(t, buildVertex(t, child, own))
	require.Equal(t, [][]string{{"base", "child"}}, in.execs())
	require.Equal(t, [][]string{{"base", "child"}}, v.execs())
	require.Equal(t, [][]string{{"child"}}, own.execs(), "a base lends its session to its own steps only")
	require.True(t, s.getState(Edge{Vertex: v}).Lent())
	require.False(t, s.getState(Edge{Vertex: own}).Lent())

	require.NoError(t, child.Discard())
	require.Empty(t, s.actives, "owners keep no state")
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestStrangerIsNotAsked uses owners of the same vertices that the build is not
// chained on. They register before and after the build starts.
func TestStrangerIsNotAsked(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	other := newVtxSession(vtxOpt{name: "other"})

	before := newTestJob(t, s, "before")
	solved(t, before, v)
	build := newTestJob(t, s, "build")
	solved(t, build, v)
	build.ChainOn(resultOf(other)) // no client received this result
	after := newTestJob(t, s, "after")
	solved(t, after, v)
	require.NoError(t, buildVertex(t, build, v))
	require.Equal(t, [][]string{{"build"}}, v.execs())
	require.False(t, s.getState(Edge{Vertex: v}).Lent())

	for _, j := range []*Job{before, build, after} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

// TestChainReachesAllOfBase chains a child on one result of base, and lets it build
// another one.
func TestChainReachesAllOfBase(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	one, two := newVtxSession(vtxOpt{name: "one"}), newVtxSession(vtxOpt{name: "two"})
	base := newTestJob(t, s, "base")
	solved(t, base, one)
	child := newTestJob(t, s, "child")
	child.ChainOn(resultOf(one))
	_, err := s.load(t.Context(), two, nil, child)
	require.NoError(t, err)
	require.Equal(t, []string{"child"}, sessionsOf(s, two))
	require.NoError(t, base.Register(Edge{Vertex: two}), "base solves it later")
	require.Equal(t, []string{"base", "child"}, sessionsOf(s, two))

	require.NoError(t, base.Discard())
	require.Equal(t, []string{"child"}, sessionsOf(s, two), "the relation ends with base")
	require.NoError(t, child.Discard())
	requireEmpty(t, s)
}

// TestSessionOrder uses random bases, children and strangers.
func TestSessionOrder(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec

	for range 300 {
		s := newTestSolver(t)
		v := newVtxSession(vtxOpt{name: "v"})
		const n = 8
		jobs := make([]*Job, n)
		for i := range jobs {
			jobs[i] = newTestJob(t, s, fmt.Sprintf("job%d", i))
			jobs[i].AddResult([]byte(jobs[i].id))
		}
		owners := rnd.Perm(n)[:rnd.IntN(n)]
		for _, i := range owners {
			require.NoError(t, jobs[i].Register(Edge{Vertex: v}))
		}
		builds := rnd.Perm(n)[:1+rnd.IntN(n-1)]
		lent := map[int]bool{}
		for _, i := range builds {
			_, err := s.load(t.Context(), v, nil, jobs[i])
			require.NoError(t, err)
			for _, base := range rnd.Perm(n)[:rnd.IntN(3)] {
				jobs[i].ChainOn([]byte(jobs[base].id))
				lent[base] = lent[base] || base != i
			}
		}
		var want []string
		for _, i := range owners { // in the order of registration
			if lent[i] {
				want = append(want, jobs[i].id)
			}
		}
		slices.Sort(builds) // by start
		for _, i := range builds {
			if !slices.Contains(want, jobs[i].id) {
				want = append(want, jobs[i].id)
			}
		}
		for range 3 {
			require.Equal(t, want, sessionsOf(s, v))
		}
		for _, i := range rnd.Perm(n) {
			require.NoError(t, jobs[i].Discard())
		}
		requireEmpty(t, s)
	}
}

// TestSessionOrderParents runs a nested build in a chained step.
func TestSessionOrderParents(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	inner := newVtxSession(vtxOpt{name: "inner"})
	outer := vtxSubBuild(Edge{Vertex: inner}, vtxOpt{name: "outer"})

	base := newTestJob(t, s, "base")
	solved(t, base, outer)
	stranger := newTestJob(t, s, "stranger")
	solved(t, stranger, inner)
	child := newTestJob(t, s, "child")
	child.ChainOn(resultOf(outer))
	require.NoError(t, buildVertex(t, child, outer))
	require.Equal(t, [][]string{{"base", "child"}}, inner.execs())
	require.True(t, s.getState(Edge{Vertex: inner}).Lent())

	for _, j := range []*Job{child, base, stranger} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

// TestLentTo lets a child and a stranger build the same vertex. Base lends its session
// for what the child reads from the result, and not for what the stranger reads.
func TestLentTo(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	base, child, stranger := newTestJob(t, s, "base"), newTestJob(t, s, "child"), newTestJob(t, s, "stranger")
	solved(t, base, v)
	child.ChainOn(resultOf(v))
	for _, j := range []*Job{child, stranger} {
		_, err := s.load(t.Context(), v, nil, j)
		require.NoError(t, err)
	}
	st := s.getState(Edge{Vertex: v})
	require.Equal(t, []string{"base"}, st.LentTo(session.NewGroup("child")))
	require.Equal(t, []string{"base"}, st.LentTo(session.NewGroup("other", "child")))
	for _, user := range []session.Group{nil, session.NewGroup(), session.NewGroup("stranger"), session.NewGroup("base")} {
		require.Empty(t, st.LentTo(user))
	}
	require.NoError(t, base.Discard())
	require.Empty(t, st.LentTo(session.NewGroup("child")))
	require.NoError(t, child.Discard())
	require.NoError(t, stranger.Discard())
	requireEmpty(t, s)
}

// TestSharedSession chains builds that share the session of their client. It is the
// session of each build, and is not lent.
func TestSharedSession(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	base.SessionID, child.SessionID = "shared", "shared"
	solved(t, base, v)
	child.ChainOn(resultOf(v))
	_, err := s.load(t.Context(), v, nil, child)
	require.NoError(t, err)
	st := s.getState(Edge{Vertex: v})
	require.False(t, st.Lent())
	require.Equal(t, []string{"shared"}, sessionsOf(s, v))
	require.Empty(t, st.LentTo(session.NewGroup("shared")))
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestSessionsJoin lets a job join while the sessions of others are asked.
func TestSessionsJoin(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	first := newTestJob(t, s, "first")
	_, err := s.load(t.Context(), v, nil, first)
	require.NoError(t, err)
	it := s.getState(Edge{Vertex: v}).SessionIterator()
	require.Equal(t, "first", it.NextSession())
	second := newTestJob(t, s, "second")
	_, err = s.load(t.Context(), v, nil, second)
	require.NoError(t, err)
	require.Equal(t, "second", it.NextSession())
	require.Empty(t, it.NextSession())
	require.NoError(t, first.Discard())
	require.NoError(t, second.Discard())
	requireEmpty(t, s)
}

// testCaller is a session that is connected until it is closed.
type testCaller struct {
	ctx context.Context
}

func (c testCaller) Context(context.Context) context.Context { return c.ctx }
func (testCaller) Supports(string) bool                      { return true }
func (testCaller) Conn() *grpc.ClientConn                    { return nil }
func (testCaller) SharedKey() string                         { return "" }

// TestClosedSessionIsNotLent uses a base whose client has disconnected, and that has
// not been discarded yet.
func TestClosedSessionIsNotLent(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	ctx, gone := context.WithCancelCause(t.Context())
	base.SetSession(testCaller{ctx})
	solved(t, base, v)
	child.ChainOn(resultOf(v))
	_, err := s.load(t.Context(), v, nil, child)
	require.NoError(t, err)
	require.Equal(t, []string{"base", "child"}, sessionsOf(s, v))
	gone(errors.WithStack(context.Canceled))
	require.Equal(t, []string{"child"}, sessionsOf(s, v))
	require.NoError(t, base.Discard())
	require.NoError(t, child.Discard())
	requireEmpty(t, s)
}

// TestNoCacheVariant builds both states that a digest can have.
func TestNoCacheVariant(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	v := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v"})
	twin := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", ignoreCache: true})
	require.Equal(t, v.Digest(), twin.Digest())

	base := newTestJob(t, s, "base")
	solved(t, base, v)
	child := newTestJob(t, s, "child")
	child.ChainOn(resultOf(v))
	require.NoError(t, buildVertex(t, child, v))
	third := newTestJob(t, s, "third")
	third.ChainOn(resultOf(v))
	require.NoError(t, buildVertex(t, third, twin))
	require.Equal(t, [][]string{{"base", "child"}}, v.execs())
	require.Equal(t, [][]string{{"base", "third"}}, twin.execs(), "the owner is found for both variants")

	// no state is kept, so each --no-cache build runs its step
	require.NoError(t, third.Discard())
	last := newTestJob(t, s, "last")
	require.NoError(t, buildVertex(t, last, twin))
	require.Len(t, twin.execs(), 2)

	for _, j := range []*Job{child, base, last} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

// mergeEdges merges the edge of src into that of dst, as the scheduler does.
func mergeEdges(s *Solver, src, dst Vertex) {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.setEdge(Edge{Vertex: src}, s.getEdge(Edge{Vertex: dst}))
}

// TestMergedVertices merges a into b and b into c. c asks the owners of a, also owners
// that register later.
func TestMergedVertices(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		merge [][2]int
	}{
		{"one after the other", [][2]int{{0, 1}, {1, 2}}},
		{"the other way round", [][2]int{{1, 2}, {0, 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestSolver(t)
			vs := []*vtxSession{newVtxSession(vtxOpt{name: "a"}), newVtxSession(vtxOpt{name: "b"}), newVtxSession(vtxOpt{name: "c"})}
			early := newTestJob(t, s, "early")
			solved(t, early, vs[0])
			child := newTestJob(t, s, "child")
			child.ChainOn(resultOf(vs[0]))
			for _, v := range vs {
				_, err := s.load(t.Context(), v, nil, child)
				require.NoError(t, err)
			}
			require.Equal(t, []string{"child"}, sessionsOf(s, vs[2]))
			for _, m := range tc.merge {
				mergeEdges(s, vs[m[0]], vs[m[1]])
			}
			require.Equal(t, []string{"early", "child"}, sessionsOf(s, vs[2]))
			require.Equal(t, []string{"early", "child"}, sessionsOf(s, vs[0]))
			late := newTestJob(t, s, "late")
			solved(t, late, vs[0])
			require.Equal(t, []string{"early", "child"}, sessionsOf(s, vs[2]), "a stranger")
			child.ChainOn(resultOf(vs[0]))
			require.Equal(t, []string{"early", "late", "child"}, sessionsOf(s, vs[2]))

			// an owner can end before the child's build
			require.NoError(t, early.Discard())
			require.Equal(t, []string{"late", "child"}, sessionsOf(s, vs[2]))
			require.NoError(t, late.Discard())
			require.NoError(t, buildVertex(t, child, vs[0]))
			require.NoError(t, child.Discard())
			requireEmpty(t, s)
		})
	}
}

// TestMergedAncestors merges the step of a chained build into that of a stranger, which
// then ends. From then on, the inputs of the stranger's step are built for the child,
// with the session of its base.
func TestMergedAncestors(t *testing.T) {
	t.Parallel()
	graph := func(name string) (dep, v *vtxSession) {
		dep = newVtxSession(vtxOpt{name: "dep-" + name, cacheKeySeed: "dep-" + name})
		return dep, newVtxSession(vtxOpt{name: name, cacheKeySeed: name, inputs: []Edge{{Vertex: dep}}})
	}
	s := newTestSolver(t)
	dep, v := graph("base")
	depStranger, stranger := graph("stranger")
	j := newTestJob(t, s, "stranger")
	_, err := s.load(t.Context(), stranger, nil, j)
	require.NoError(t, err)
	base := newTestJob(t, s, "base")
	solved(t, base, v)
	child := newTestJob(t, s, "child")
	child.ChainOn(resultOf(v))
	_, err = s.load(t.Context(), v, nil, child)
	require.NoError(t, err)

	mergeEdges(s, v, stranger)
	require.NoError(t, j.Discard())
	require.Equal(t, []string{"base", "child"}, sessionsOf(s, stranger))
	require.Equal(t, []string{"base", "child"}, sessionsOf(s, depStranger))
	require.Equal(t, []string{"base", "child"}, sessionsOf(s, dep))
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestUnchainedMergeCostsAncestorsNothing merges a step of a build that is not
// chained.
func TestUnchainedMergeCostsAncestorsNothing(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	dep := newVtxSession(vtxOpt{name: "dep"})
	dst := newVtxSession(vtxOpt{name: "dst", inputs: []Edge{{Vertex: dep}}})
	src := newVtxSession(vtxOpt{name: "src"})
	j := newTestJob(t, s, "job")
	for _, v := range []Vertex{dst, src} {
		_, err := s.load(t.Context(), v, nil, j)
		require.NoError(t, err)
	}
	mergeEdges(s, src, dst)
	require.NotNil(t, s.getState(Edge{Vertex: dst}).merged)
	require.Nil(t, s.getState(Edge{Vertex: dep}).merged)
	require.NoError(t, j.Discard())
	requireEmpty(t, s)
}

// TestRegisterTakesNoPart checks that a base only changes which sessions are asked, and
// not the progress, the values or the version.
func TestRegisterTakesNoPart(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})

	base := newTestJob(t, s, "base")
	base.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent-1)
	base.SetValue("entitlement", "base")
	solved(t, base, v)
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	var shown []*client.Vertex
	go func() {
		defer close(done)
		for st := range ch {
			shown = append(shown, st.Vertexes...)
		}
	}()
	go base.Status(context.WithoutCancel(t.Context()), ch)

	child := newTestJob(t, s, "child")
	child.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent)
	child.SetValue("entitlement", "child")
	child.ChainOn(resultOf(v))
	require.NoError(t, buildVertex(t, child, v))

	st := s.getState(Edge{Vertex: v})
	version, err := st.CompatibilityVersion()
	require.NoError(t, err)
	require.Equal(t, compat.CompatibilityVersionCurrent, version)
	var values []any
	require.NoError(t, st.builder().EachValue(t.Context(), "entitlement", func(v any) error {
		values = append(values, v)
		return nil
	}))
	require.Equal(t, []any{"child"}, values)
	base.CloseProgress()
	<-done
	require.Empty(t, shown, "a job that only registered must not show the vertex")

	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestFailureIsNotKept lets a step of base fail for a child. No other build gets the
// failure.
func TestFailureIsNotKept(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	solved(t, base, v)
	child.ChainOn(resultOf(v))
	v.fail.Store(true)
	require.ErrorContains(t, buildVertex(t, child, v), "op v failed")
	require.NoError(t, child.Discard())
	v.fail.Store(false)
	require.NoError(t, buildVertex(t, base, v))
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

func TestAfterDiscard(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	base, j := newTestJob(t, s, "base"), newTestJob(t, s, "j")
	solved(t, base, v)
	require.NoError(t, j.Discard())
	require.ErrorIs(t, j.Err(), ErrJobDiscarded)
	require.ErrorIs(t, j.Register(Edge{Vertex: v}), ErrJobDiscarded)
	j.AddResult(resultOf(v))
	j.ChainOn(resultOf(v))
	require.False(t, j.HasBases())
	require.False(t, base.IsResult(resultOf(v)), "only its own")
	require.NoError(t, j.Discard(), "a second discard does nothing")
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// idCache is a cache import that has only an id.
type idCache struct {
	CacheManager
	id string
}

func (c idCache) ID() string { return c.id }

func TestLentCaches(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	withCache := func(id string) Vertex {
		opt := vtxOpt{name: "v", cacheKeySeed: "v"}
		in := vtxOpt{name: "in"}
		if id != "" {
			opt.cacheSource = idCache{NewInMemoryCacheManager(), id}
			in.cacheSource = opt.cacheSource
		}
		opt.inputs = []Edge{{Vertex: vtx(in)}}
		return vtx(opt)
	}
	ids := func(caches []CacheManager) (out []string) {
		for _, cm := range caches {
			out = append(out, cm.ID())
		}
		return out
	}
	plain := withCache("")
	base, stranger, child := newTestJob(t, s, "base"), newTestJob(t, s, "stranger"), newTestJob(t, s, "child")
	for _, id := range []string{"one", "", "two", "one"} { // the definition is solved again with other imports
		solved(t, base, withCache(id))
	}
	solved(t, stranger, withCache("stranger"))
	base.AddResult([]byte("result"))
	child.ChainOn([]byte("result"))
	require.Equal(t, []string{"one", "two"}, ids(child.LentCaches(plain.Digest())))
	require.Equal(t, []string{"one", "two"}, ids(child.LentCaches(plain.Inputs()[0].Vertex.Digest())))
	require.Empty(t, stranger.LentCaches(plain.Digest()))
	require.Empty(t, child.LentCaches(digest.FromString("other")))
	for _, j := range []*Job{base, stranger, child} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

// TestDiscardRace lets jobs register, chain, build and end at the same time. Nothing
// may be left, in any order: what a job registers is either registered before the
// discard marks the job, and removed by the discard, or refused. Both check the mark
// under chains.mu or the lock of the job. Only one job builds at a time, and builds load
// nothing from the cache. Otherwise upstream's solver reads without a lock what the
// scheduler writes: when a job joins a vertex that another one is running, and when it
// logs a cache record whose edge is being merged.
func TestDiscardRace(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	vs := make([]Vertex, 40)
	for i := range vs {
		opt := vtxOpt{name: fmt.Sprintf("v%d", i), cacheKeySeed: fmt.Sprintf("seed%d", i%30), ignoreCache: true}
		if i > 0 {
			opt.inputs = []Edge{{Vertex: vs[i-1]}}
		}
		if i > 5 {
			opt.inputs = append(opt.inputs, Edge{Vertex: vs[i-5]})
		}
		vs[i] = vtx(opt)
	}
	s := newTestSolver(t)
	var building sync.Mutex
	var eg errgroup.Group
	for w := range 4 {
		eg.Go(func() error {
			rnd := rand.New(rand.NewPCG(seed, uint64(w))) //nolint:gosec
			for i := range 500 {
				j, err := s.NewJob(fmt.Sprintf("%d-%d", w, i))
				if err != nil {
					return err
				}
				j.SessionID = j.id
				inner, ctx := errgroup.WithContext(t.Context())
				for range rnd.IntN(3) + 1 {
					v, on := vs[rnd.IntN(len(vs))], vs[rnd.IntN(len(vs))]
					inner.Go(func() error {
						j.ChainOn(resultOf(on))
						if err := j.Register(Edge{Vertex: v}); !errors.Is(err, ErrJobDiscarded) && err != nil {
							return err
						}
						j.AddResult(resultOf(v))
						sessionsOf(s, on)
						return nil
					})
				}
				if rnd.IntN(2) == 0 {
					v := vs[rnd.IntN(len(vs))]
					building.Lock()
					res, err := j.Build(ctx, Edge{Vertex: v})
					building.Unlock()
					if err != nil && !errdefs.IsCanceled(ctx, err) {
						return err
					}
					if res != nil {
						res.Release(context.WithoutCancel(ctx))
					}
				}
				if err := j.Discard(); err != nil {
					return err
				}
				if err := inner.Wait(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, eg.Wait())
	requireEmpty(t, s)
}

// TestEndedBaseIsForgotten chains a long-lived job on many short-lived ones.
func TestEndedBaseIsForgotten(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	long := newTestJob(t, s, "long")
	for i := range 100 {
		base := newTestJob(t, s, fmt.Sprintf("base%d", i))
		base.AddResult([]byte("r"))
		long.ChainOn([]byte("r"))
		require.Len(t, long.bases(), 1)
		require.NoError(t, base.Discard())
	}
	require.Empty(t, long.bases())
	long.AddResult([]byte("r"))
	child := newTestJob(t, s, "child")
	child.ChainOn([]byte("r"))
	require.NoError(t, child.Discard())
	require.Empty(t, long.owner.chained)
	require.NoError(t, long.Discard())
	requireEmpty(t, s)
}
