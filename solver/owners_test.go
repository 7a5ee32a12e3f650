package solver

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// vtxSession is a vertex whose op records the sessions it was offered.
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
	s.owners.mu.RLock()
	defer s.owners.mu.RUnlock()
	require.Empty(t, s.actives, "active states are left")
	require.Empty(t, s.owners.owners, "owners are left")
	require.Empty(t, s.owners.kept, "kept states are left")
	require.Empty(t, s.owners.failed, "failed states are left")
	require.Empty(t, s.owners.merged, "merges are left")
	require.Empty(t, s.owners.mergedFrom, "merges are left")
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

func TestRegisterLendsSession(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "base", inputs: []Edge{{Vertex: in}}})
	own := newVtxSession(vtxOpt{name: "own", inputs: []Edge{{Vertex: v}}})

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	require.Empty(t, s.actives, "registering must not create states")

	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, own))
	require.Equal(t, [][]string{{"base", "child"}}, in.execs())
	require.Equal(t, [][]string{{"base", "child"}}, v.execs())
	require.Equal(t, [][]string{{"child"}}, own.execs(), "the owner of an input must not lend its session to other steps")

	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

func TestRegisterDigests(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "v", inputs: []Edge{{Vertex: in}}})

	byDigest := newTestJob(t, s, "digests")
	require.NoError(t, byDigest.RegisterDigests(t.Context(), nil, nil))
	require.NoError(t, byDigest.RegisterDigests(t.Context(), []digest.Digest{in.Digest(), v.Digest()}, nil))
	byEdge := newTestJob(t, s, "edge")
	require.NoError(t, byEdge.Register(t.Context(), Edge{Vertex: v}))
	require.NoError(t, byEdge.RegisterDigests(t.Context(), []digest.Digest{in.Digest(), v.Digest()}, nil))

	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, v))
	require.Equal(t, [][]string{{"digests", "edge", "child"}}, in.execs())
	require.Equal(t, [][]string{{"digests", "edge", "child"}}, v.execs())
	for _, j := range []*Job{child, byEdge, byDigest} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
	require.ErrorIs(t, byDigest.RegisterDigests(t.Context(), []digest.Digest{v.Digest()}, nil), ErrJobDiscarded)
}

func TestRegisterKeepsResults(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	// the no-cache vertex would run again if its state was gone
	v := newVtxSession(vtxOpt{name: "v", ignoreCache: true})
	own := newVtxSession(vtxOpt{name: "own", inputs: []Edge{{Vertex: v}}})

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))

	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, own))
	require.NoError(t, child.Discard())
	require.NotContains(t, s.actives, own.Digest())
	require.Contains(t, s.actives, v.Digest())

	require.NoError(t, buildVertex(t, base, v))
	require.Len(t, v.execs(), 1, "the result of the child must be reused")

	other := newTestJob(t, s, "other")
	require.NoError(t, buildVertex(t, other, v))
	require.Len(t, v.execs(), 1)
	require.NoError(t, base.Discard())
	require.Contains(t, s.actives, v.Digest(), "a job still builds the vertex")
	require.NoError(t, other.Discard())
	requireEmpty(t, s)
}

func TestRegisterOrder(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec

	for range 200 {
		s := newTestSolver(t)
		v := newVtxSession(vtxOpt{name: "v"})

		const n = 8
		jobs := make([]*Job, n)
		for i := range jobs {
			jobs[i] = newTestJob(t, s, fmt.Sprintf("job%d", i))
		}
		var want []string
		for _, i := range rnd.Perm(n)[:rnd.IntN(n)] {
			require.NoError(t, jobs[i].Register(t.Context(), Edge{Vertex: v}))
			want = append(want, jobs[i].id)
		}
		builds := map[int]bool{rnd.IntN(n): true}
		for _, i := range rnd.Perm(n)[:rnd.IntN(n)] {
			builds[i] = true
		}
		for i := range builds {
			_, err := s.load(t.Context(), v, nil, jobs[i])
			require.NoError(t, err)
		}
		owners := map[string]bool{}
		for _, id := range want {
			owners[id] = true
		}
		for i, j := range jobs { // in the order of their start
			if builds[i] && !owners[j.id] {
				want = append(want, j.id)
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

func TestRegisterOrderParents(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	inner := newVtxSession(vtxOpt{name: "inner"})
	outer := vtxSubBuild(Edge{Vertex: inner}, vtxOpt{name: "outer"})

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: outer}))
	other := newTestJob(t, s, "other")
	require.NoError(t, other.Register(t.Context(), Edge{Vertex: inner}))
	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, outer))
	require.Equal(t, [][]string{{"other", "base", "child"}}, inner.execs())

	require.NoError(t, child.Discard())
	require.Contains(t, s.actives, outer.Digest())
	require.NoError(t, base.Discard())
	require.NotContains(t, s.actives, outer.Digest())
	require.Contains(t, s.actives, inner.Digest())
	require.NoError(t, other.Discard())
	requireEmpty(t, s)
}

func TestRegisterNoCacheVariant(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	v := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v"})
	twin := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", ignoreCache: true})
	require.Equal(t, v.Digest(), twin.Digest())

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, v))

	third := newTestJob(t, s, "third")
	require.NoError(t, buildVertex(t, third, twin))
	require.Equal(t, [][]string{{"base", "third"}}, twin.execs(), "the owner is shared by both variants")

	last := newTestJob(t, s, "last")
	require.NoError(t, last.Register(t.Context(), Edge{Vertex: twin}))
	require.NoError(t, third.Discard())
	require.NoError(t, child.Discard())
	require.Len(t, s.actives, 2, "owners keep both variants")
	for _, st := range s.actives {
		require.Equal(t, []string{"base", "last"}, session.AllSessionIDs(st.Session()))
	}

	require.NoError(t, buildVertex(t, base, v))
	require.Len(t, twin.execs(), 1)
	require.Len(t, v.execs(), 1)

	require.NoError(t, base.Discard())
	require.NoError(t, last.Discard())
	requireEmpty(t, s)
}

func TestRegisterEdgeMerge(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	graph := func(name string) (dep, v *vtxSession) {
		dep = newVtxSession(vtxOpt{name: "dep-" + name, cacheKeySeed: "dep"})
		return dep, newVtxSession(vtxOpt{name: name, cacheKeySeed: "v", inputs: []Edge{{Vertex: dep}}})
	}
	dep0, v0 := graph("v0")
	_, v1 := graph("v1")
	_, v2 := graph("v2")

	j0 := newTestJob(t, s, "j0")
	require.NoError(t, buildVertex(t, j0, v0))

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v1}))
	j1 := newTestJob(t, s, "j1")
	require.NoError(t, buildVertex(t, j1, v1))
	require.Empty(t, v1.execs(), "the edge was merged")
	require.Equal(t, []string{"base", "j0", "j1"}, sessionsOf(s, v0))
	require.Equal(t, []string{"base", "j0", "j1"}, sessionsOf(s, dep0))

	// a build that registers the merged vertex later
	late := newTestJob(t, s, "late")
	require.NoError(t, late.Register(t.Context(), Edge{Vertex: v1}))
	require.Equal(t, []string{"base", "late", "j0", "j1"}, sessionsOf(s, v0))
	require.Equal(t, []string{"base", "late", "j0", "j1"}, sessionsOf(s, dep0))

	// merging with what was merged already
	oldest := newTestJob(t, s, "third")
	require.NoError(t, oldest.Register(t.Context(), Edge{Vertex: v2}))
	j2 := newTestJob(t, s, "j2")
	require.NoError(t, buildVertex(t, j2, v2))
	require.Equal(t, []string{"base", "late", "third", "j0", "j1", "j2"}, sessionsOf(s, v0))
	require.Equal(t, []string{"third", "j2"}, sessionsOf(s, v2), "a merge has one direction")

	for _, j := range []*Job{j0, j1, j2} {
		require.NoError(t, j.Discard())
	}
	require.Equal(t, []string{"base", "late", "third"}, sessionsOf(s, v0))
	for _, j := range []*Job{base, late, oldest} {
		require.NoError(t, j.Discard())
	}
	requireEmpty(t, s)
}

func TestRegisterProgress(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})

	status := func(j *Job) (get func() []*client.Vertex) {
		ch := make(chan *client.SolveStatus)
		done := make(chan struct{})
		var out []*client.Vertex
		go func() {
			defer close(done)
			for st := range ch {
				out = append(out, st.Vertexes...)
			}
		}()
		go j.Status(context.WithoutCancel(t.Context()), ch)
		return func() []*client.Vertex {
			j.CloseProgress()
			<-done
			return out
		}
	}

	silent := newTestJob(t, s, "silent")
	require.NoError(t, silent.Register(t.Context(), Edge{Vertex: v}))
	silentStatus := status(silent)
	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	baseStatus := status(base)

	child := newTestJob(t, s, "child")
	childStatus := status(child)
	require.NoError(t, buildVertex(t, child, v))
	want := childStatus()
	require.NoError(t, child.Discard())

	require.NoError(t, buildVertex(t, base, v))
	got := baseStatus()

	require.Empty(t, silentStatus(), "a job that only registered must not show the vertex")
	last := func(vs []*client.Vertex) *client.Vertex {
		require.NotEmpty(t, vs)
		return vs[len(vs)-1]
	}
	require.Equal(t, last(want), last(got), "the vertex has the times of its real run")
	require.NotNil(t, last(got).Completed)

	require.NoError(t, silent.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestDiscardedProgress has many jobs that build a vertex which lasts. What
// they leave must not add up.
func TestDiscardedProgress(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := vtx(vtxOpt{name: "v", inputs: []Edge{{Vertex: vtx(vtxOpt{name: "in"})}}})
	base := newTestJob(t, s, "base")
	require.NoError(t, buildVertex(t, base, v))
	for i := range 3 {
		child := newTestJob(t, s, fmt.Sprintf("child%d", i))
		require.NoError(t, buildVertex(t, child, v))
		require.NoError(t, child.Discard())
	}
	for _, st := range s.actives {
		require.Len(t, st.allPw, 1)
		require.Equal(t, 1, reflect.ValueOf(st.mpw).Elem().FieldByName("writers").Len())
	}
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

func TestRegisterTakesNoPart(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})

	base := newTestJob(t, s, "base")
	base.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent-1)
	base.SetValue("entitlement", "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	child := newTestJob(t, s, "child")
	child.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent)
	child.SetValue("entitlement", "child")
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

	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

func TestRegisterFailureNotKept(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	in := newVtxSession(vtxOpt{name: "in", ignoreCache: true})
	bad := newVtxSession(vtxOpt{name: "bad", inputs: []Edge{{Vertex: in}}})
	bad.fail.Store(true)
	top := newVtxSession(vtxOpt{name: "top", inputs: []Edge{{Vertex: bad}, {Vertex: in}}})

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: top}))
	child := newTestJob(t, s, "child")
	require.ErrorContains(t, buildVertex(t, child, top), "op bad failed")
	require.NoError(t, child.Discard())
	require.Contains(t, s.actives, in.Digest(), "a result that does not depend on the failure is kept")
	require.Len(t, s.actives, 1)

	bad.fail.Store(false)
	again := newTestJob(t, s, "again")
	require.NoError(t, buildVertex(t, again, top), "an old failure must not be given to another build")
	require.Len(t, in.execs(), 1)
	require.NoError(t, again.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// registerOn has a job own a step that depends on bad.
func registerOn(t *testing.T, s *Solver, bad Vertex) (top *vtxSession, base *Job) {
	top = newVtxSession(vtxOpt{name: "top", inputs: []Edge{{Vertex: bad}}})
	base = newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: top}))
	return top, base
}

// requireRetried builds what has failed before, and ends base, which owns it.
func requireRetried(t *testing.T, s *Solver, base *Job, v Vertex) {
	t.Helper()
	require.NoError(t, buildVertex(t, base, v), "an old failure must not be given to another build")
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestRegisterFailureOfOthers has a build meet the failure of a step that
// another one has run. What depends on it failed for both.
func TestRegisterFailureOfOthers(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	bad := newVtxSession(vtxOpt{name: "bad"})
	bad.fail.Store(true)
	top, base := registerOn(t, s, bad)
	first := newTestJob(t, s, "first")
	require.ErrorContains(t, buildVertex(t, first, bad), "op bad failed")
	child := newTestJob(t, s, "child")
	require.ErrorContains(t, buildVertex(t, child, top), "op bad failed")
	require.Len(t, bad.execs(), 1)
	require.NoError(t, child.Discard())
	require.NoError(t, first.Discard())
	require.Empty(t, s.actives)

	bad.fail.Store(false)
	requireRetried(t, s, base, top)
}

// TestRegisterFailureAfterDiscard has a step fail when the job that ran it has
// ended, as when a client goes.
func TestRegisterFailureAfterDiscard(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	started, proceed := make(chan struct{}), make(chan struct{})
	bad := newVtxSession(vtxOpt{name: "bad", execPreFunc: func(context.Context) error {
		close(started)
		<-proceed
		return errors.New("op bad failed")
	}})
	top, base := registerOn(t, s, bad)

	child := newTestJob(t, s, "child")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() {
		_, err := child.Build(ctx, Edge{Vertex: top})
		done <- err
	}()
	<-started
	require.NoError(t, child.Discard())
	require.Len(t, s.actives, 2)
	cancel(errors.WithStack(context.Canceled))
	close(proceed)
	require.Error(t, <-done)
	require.Empty(t, s.actives)

	bad.opt.execPreFunc = nil
	requireRetried(t, s, base, top)
}

// TestRegisterFailureBelow has a step fail below one that is kept.
func TestRegisterFailureBelow(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	ctx, cancel := context.WithCancelCause(t.Context())
	bad := newVtxSession(vtxOpt{name: "bad", execPreFunc: func(ctx context.Context) error {
		cancel(errors.WithStack(context.Canceled))
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	top, base := registerOn(t, s, bad)
	child := newTestJob(t, s, "child")
	_, err := child.Build(ctx, Edge{Vertex: top})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, child.Discard())
	require.Len(t, s.actives, 2, "what was canceled is kept")

	bad.opt.execPreFunc = nil
	bad.fail.Store(true)
	other := newTestJob(t, s, "other")
	require.ErrorContains(t, buildVertex(t, other, bad), "op bad failed")
	require.Contains(t, s.actives, bad.Digest())
	require.NotContains(t, s.actives, top.Digest(), "what is kept must not outlive its inputs")
	require.NoError(t, other.Discard())
	require.Empty(t, s.actives)

	bad.fail.Store(false)
	requireRetried(t, s, base, top)
}

// TestRegisterFailureBetween has a step fail between the two looks that the end
// of a job takes at failures.
func TestRegisterFailureBetween(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	bad := newVtxSession(vtxOpt{name: "bad"})
	bad.fail.Store(true)
	top, base := registerOn(t, s, bad)
	child := newTestJob(t, s, "child")
	require.ErrorContains(t, buildVertex(t, child, top), "op bad failed")
	s.owners.mu.Lock()
	delete(s.owners.failed, s.actives[bad.Digest()])
	delete(s.owners.failed, s.actives[top.Digest()])
	s.owners.mu.Unlock()
	require.NoError(t, child.Discard())
	require.Empty(t, s.actives)
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// fullCache cannot save results.
type fullCache struct {
	CacheManager
	full atomic.Bool
}

func (c *fullCache) Save(key *CacheKey, s Result, createdAt time.Time) (*ExportableCacheKey, error) {
	if c.full.Load() {
		return nil, errors.New("no space left on device")
	}
	return c.CacheManager.Save(key, s, createdAt)
}

func TestRegisterFailureOfCache(t *testing.T) {
	t.Parallel()
	cache := &fullCache{CacheManager: NewInMemoryCacheManager()}
	s := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver, DefaultCache: cache})
	defer s.Close()

	v := newVtxSession(vtxOpt{name: "v"})
	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	cache.full.Store(true)
	child := newTestJob(t, s, "child")
	require.ErrorContains(t, buildVertex(t, child, v), "no space left")
	require.NoError(t, child.Discard())

	cache.full.Store(false)
	requireRetried(t, s, base, v)
}

// TestObserve looks at which errors of a build that is canceled count.
func TestObserve(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.WithStack(context.Canceled))
	for _, tc := range []struct {
		ctx    context.Context
		err    error
		failed bool
	}{
		{t.Context(), nil, false},
		{ctx, nil, false},
		{ctx, errors.Wrap(context.Cause(ctx), "stopped"), false},
		{t.Context(), errors.WithStack(context.Canceled), true},
		{ctx, errors.New("exit code 1"), true},
		{ctx, status.Error(codes.Canceled, "the client connection is closing"), true},
		{ctx, errors.New("unexpected EOF"), true},
	} {
		v := vtx(vtxOpt{name: "v"})
		op := &observedOp{st: &state{vtx: v, solver: s}}
		op.observe(tc.ctx, tc.err)
		require.Equal(t, tc.failed, op.failed.Load(), "%v", tc.err)
	}
}

func TestRegisterCanceledBuild(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)

	started := make(chan struct{}, 2)
	v := newVtxSession(vtxOpt{name: "v", execPreFunc: func(ctx context.Context) error {
		started <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))

	child := newTestJob(t, s, "child")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-started
		cancel(errors.WithStack(context.Canceled))
	}()
	_, err := child.Build(ctx, Edge{Vertex: v})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, child.Discard())

	v.opt.execPreFunc = nil
	require.NoError(t, buildVertex(t, base, v))
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

func TestRegisterAfterDiscard(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "j")
	require.NoError(t, j.Discard())
	require.ErrorIs(t, j.Register(t.Context(), Edge{Vertex: newVtxSession(vtxOpt{})}), ErrJobDiscarded)
	requireEmpty(t, s)
	require.NoError(t, j.Discard(), "a second discard does nothing")
}

func TestRegisterCanceled(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "j")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.WithStack(context.Canceled))
	require.ErrorIs(t, j.Register(ctx, Edge{Vertex: newVtxSession(vtxOpt{})}), context.Canceled)
	require.NoError(t, j.Discard())
	requireEmpty(t, s)
}

// countingCache is a cache import that counts its lookups.
type countingCache struct {
	CacheManager
	id      string
	queries atomic.Int64
}

func (c *countingCache) ID() string { return c.id }

func (c *countingCache) Query(inp []CacheKeyWithSelector, inputIndex Index, dgst digest.Digest, outputIndex Index) ([]*CacheKey, error) {
	c.queries.Add(1)
	return c.CacheManager.Query(inp, inputIndex, dgst, outputIndex)
}

func TestRegisterCacheImports(t *testing.T) {
	t.Parallel()

	imported := &countingCache{CacheManager: NewInMemoryCacheManager(), id: "import"}
	// fill the import from a solver of its own
	filler := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver, DefaultCache: imported.CacheManager})
	defer filler.Close()
	fv := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v"})
	fj := newTestJob(t, filler, "filler")
	require.NoError(t, buildVertex(t, fj, fv))
	require.NoError(t, fj.Discard())

	s := newTestSolver(t)
	withImport := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", cacheSource: imported})
	plain := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v"})

	base := newTestJob(t, s, "base")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: plain}))
	// the import comes with a second lazy solve of the same vertex
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: withImport}))
	require.Zero(t, imported.queries.Load(), "registering must not use the import")

	// another owner has an import without this step
	empty := &countingCache{CacheManager: NewInMemoryCacheManager(), id: "empty"}
	third := newTestJob(t, s, "third")
	require.NoError(t, third.Register(t.Context(), Edge{Vertex: newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", cacheSource: empty})}))

	child := newTestJob(t, s, "child")
	require.NoError(t, buildVertex(t, child, plain))
	require.Empty(t, plain.execs(), "the import of the owner must be used")
	require.NotZero(t, imported.queries.Load())
	require.NotZero(t, empty.queries.Load())

	// what was found stays, what was not goes with its owner
	s.mu.RLock()
	st := s.actives[plain.Digest()]
	s.mu.RUnlock()
	require.NotNil(t, st)
	require.Contains(t, st.cache, "import")
	require.NotContains(t, st.cache, "empty")
	require.Len(t, st.ownerCaches(), 1)
	require.NoError(t, third.Discard())
	require.Empty(t, st.ownerCaches())

	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	requireEmpty(t, s)
}

// TestRegisterDiscardRace lets jobs register, build and end at the same time.
// Whatever the order is, nothing may be left: a registration either happens
// before the discard marks the job, and is removed by it, or is refused. Both
// look at the mark under the lock that protects the index. Builds exclude each
// other and load nothing from the cache: joining a vertex that another job is
// running, and logging a cache record whose edge is being merged, read without
// a lock what the scheduler writes.
func TestRegisterDiscardRace(t *testing.T) {
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
					v := vs[rnd.IntN(len(vs))]
					inner.Go(func() error {
						if err := j.Register(ctx, Edge{Vertex: v}); !errors.Is(err, ErrJobDiscarded) {
							return err
						}
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

// TestOwnerIndexRace uses all of the index at the same time, without a
// scheduler that would serialize it.
func TestOwnerIndexRace(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	_, vertices := modelGraph(rand.New(rand.NewPCG(seed, 9)), 30, false) //nolint:gosec
	vs := vertices[0]

	var o ownerIndex
	var eg errgroup.Group
	for w := range 8 {
		eg.Go(func() error {
			rnd := rand.New(rand.NewPCG(seed, uint64(w))) //nolint:gosec
			for range 2000 {
				j := &Job{}
				var inner errgroup.Group
				for range 2 {
					v := vs[rnd.IntN(len(vs))]
					inner.Go(func() error {
						if err := o.register(t.Context(), j, o.missing(j, v, nil), nil, nil); !errors.Is(err, ErrJobDiscarded) {
							return err
						}
						return nil
					})
				}
				a, b := vs[rnd.IntN(len(vs))].Digest(), vs[rnd.IntN(len(vs))].Digest()
				o.inherit(a, b)
				regs := o.lookup(a)
				if !slices.IsSortedFunc(regs, func(a, b *registration) int { return cmp.Compare(a.seq, b.seq) }) {
					return errors.Errorf("owners of %s are not in the order of registration", a)
				}
				o.remove(j)
				if err := inner.Wait(); err != nil {
					return err
				}
				for _, v := range vs {
					for _, reg := range o.lookup(v.Digest()) {
						if reg.job == j {
							return errors.Errorf("%s is still owned by a discarded job", v.Name())
						}
					}
				}
				o.mu.Lock()
				o.forgetMerges(a)
				o.mu.Unlock()
			}
			return nil
		})
	}
	require.NoError(t, eg.Wait())
	require.Empty(t, o.owners)
}

// TestMergeUnbuilt merges the edge of a state that nobody has built yet. It has
// no op then.
func TestMergeUnbuilt(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "job")
	built := newVtxSession(vtxOpt{name: "built", cacheKeySeed: "built"})
	require.NoError(t, buildVertex(t, j, built))
	other := newVtxSession(vtxOpt{name: "other", cacheKeySeed: "other"})
	_, err := s.load(t.Context(), other, nil, j)
	require.NoError(t, err)

	func() {
		s.s.mu.Lock()
		defer s.s.mu.Unlock()
		s.setEdge(Edge{Vertex: other}, s.getEdge(Edge{Vertex: built}))
	}()
	require.NoError(t, buildVertex(t, j, other))
	require.Empty(t, other.execs())

	require.NoError(t, j.Discard())
	requireEmpty(t, s)
}
