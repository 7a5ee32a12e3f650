//go:build !race

// Cancellations of ops that run meet a data race of upstream's package pipe,
// which the race detector would find.

package solver

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/compression"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var errOpFailed = errors.New("op failed")

var evaluateRounds = flag.Int("evaluate.rounds", 300, "rounds of TestEvaluateRace")

// resultLog knows every result that ops returned and caches loaded.
type resultLog struct {
	active  atomic.Int64 // ops and loads at work
	mu      sync.Mutex
	results []*loggedResult
}

type loggedResult struct {
	*dummyResult
	released atomic.Int64
}

func (r *loggedResult) Release(context.Context) error {
	r.released.Add(1)
	return nil
}

func (l *resultLog) add(id string) *loggedResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &loggedResult{dummyResult: &dummyResult{id: id}}
	l.results = append(l.results, r)
	return r
}

func (l *resultLog) find(id string) *loggedResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.results[slices.IndexFunc(l.results, func(r *loggedResult) bool { return r.id == id })]
}

// requireReleased waits until nothing is at work and each of at least want
// results has been released, which must happen once. Results are released in
// the background.
func (l *resultLog) requireReleased(t *testing.T, want int, msg string) {
	t.Helper()
	var total int
	var left []string
	all := func() bool {
		if l.active.Load() > 0 {
			return false
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		total, left = len(l.results), nil
		for _, r := range l.results {
			if r.released.Load() == 0 {
				left = append(left, r.id)
			}
		}
		return total >= want && len(left) == 0
	}
	if !assert.Eventually(t, all, 10*time.Second, time.Millisecond) {
		require.FailNow(t, "not released", "%s: %v of %d results", msg, left, total)
	}
	l.requireOnce(t, msg)
}

func (l *resultLog) requireOnce(t *testing.T, msg string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.results {
		require.EqualValues(t, 1, r.released.Load(), "%s: releases of %s", msg, r.id)
	}
}

// vtxLogged is a vertex with several outputs whose op does what hook says.
type vtxLogged struct {
	*vertex
	log     *resultLog
	outputs int
	hook    func(context.Context) error
	execs   atomic.Int64
}

func (v *vtxLogged) Sys() any {
	return v
}

func (v *vtxLogged) Exec(ctx context.Context, jobCtx JobContext, inputs []Result) (out []Result, err error) {
	v.log.active.Add(1)
	defer v.log.active.Add(-1)
	if v.hook != nil {
		if err := v.hook(ctx); err != nil {
			return nil, err
		}
	}
	n := v.execs.Add(1)
	for i := range max(v.outputs, 1) {
		out = append(out, v.log.add(fmt.Sprintf("%s-%d-%d", v.Name(), i, n)))
	}
	return out, nil
}

// loggedStore loads another result each time, as a worker does.
type loggedStore struct {
	log  *resultLog
	hook func()

	mu    sync.Mutex
	saved map[string]struct{}
}

func (s *loggedStore) Save(r Result, at time.Time) (CacheResult, error) {
	if s.hook != nil {
		s.hook()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saved == nil {
		s.saved = map[string]struct{}{}
	}
	s.saved[r.ID()] = struct{}{}
	return CacheResult{ID: r.ID(), CreatedAt: at}, nil
}

func (s *loggedStore) Load(ctx context.Context, res CacheResult) (Result, error) {
	s.log.active.Add(1)
	defer s.log.active.Add(-1)
	if s.hook != nil {
		s.hook()
	}
	if !s.Exists(ctx, res.ID) {
		return nil, errors.WithStack(ErrNotFound)
	}
	return s.log.add(res.ID + "-loaded"), nil
}

func (s *loggedStore) LoadRemotes(context.Context, CacheResult, *compression.Config, session.Group) ([]*Remote, error) {
	return nil, nil
}

func (s *loggedStore) Exists(_ context.Context, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.saved[id]
	return ok
}

func newLoggedSolver(t testing.TB, store *loggedStore) *Solver {
	s := NewSolver(SolverOpt{
		ResolveOpFunc: testOpResolver,
		DefaultCache:  NewCacheManager(t.Context(), "logged", NewInMemoryCacheStorage(), store),
	})
	t.Cleanup(s.Close)
	return s
}

// discardEarly starts a build and cancels it when ready is closed. Its job is
// discarded at once and does not wait for the build, as when a client goes that
// evaluates a ref. It returns what waits for the build.
func discardEarly(t *testing.T, s *Solver, e Edge, ready <-chan struct{}) (wait func()) {
	t.Helper()
	j := newTestJob(t, s, "early")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if res, err := j.Evaluate(ctx, e); err == nil { // the op was faster
			res.Release(context.WithoutCancel(ctx))
		}
	}()
	<-ready
	cancel(errors.WithStack(context.Canceled))
	require.NoError(t, j.Discard())
	return func() {
		<-done
		requireEmpty(t, s)
	}
}

// TestEvaluateLateExec has an op that is canceled and succeeds, after the job
// is gone.
func TestEvaluateLateExec(t *testing.T) {
	t.Parallel()
	log := &resultLog{}
	s := newLoggedSolver(t, &loggedStore{log: log})
	ready, discarded := make(chan struct{}), make(chan struct{})
	v := &vtxLogged{vertex: vtx(vtxOpt{}), log: log, outputs: 3, hook: func(context.Context) error {
		close(ready)
		<-discarded
		return nil
	}}
	wait := discardEarly(t, s, Edge{Vertex: v, Index: 1}, ready)
	close(discarded)
	wait()
	log.requireReleased(t, 3, "late exec")
}

// TestEvaluateLateSave has an op that has ended, but its result is being saved
// in the cache when the job goes.
func TestEvaluateLateSave(t *testing.T) {
	t.Parallel()
	log := &resultLog{}
	ready, discarded := make(chan struct{}), make(chan struct{})
	s := newLoggedSolver(t, &loggedStore{log: log, hook: func() {
		close(ready)
		<-discarded
	}})
	v := &vtxLogged{vertex: vtx(vtxOpt{}), log: log, outputs: 2}
	wait := discardEarly(t, s, Edge{Vertex: v}, ready)
	close(discarded)
	wait()
	log.requireReleased(t, 2, "late save")
}

// TestEvaluateLateLoad has a result that is being loaded from the cache when the
// job goes.
func TestEvaluateLateLoad(t *testing.T) {
	t.Parallel()
	log := &resultLog{}
	store := &loggedStore{log: log}
	s := newLoggedSolver(t, store)
	v := &vtxLogged{vertex: vtx(vtxOpt{}), log: log}
	first := newTestJob(t, s, "first")
	require.NoError(t, buildVertex(t, first, v))
	require.NoError(t, first.Discard())
	log.requireReleased(t, 1, "first build")

	ready, discarded := make(chan struct{}), make(chan struct{})
	store.hook = func() {
		close(ready)
		<-discarded
	}
	wait := discardEarly(t, s, Edge{Vertex: v}, ready)
	close(discarded)
	wait()
	log.requireReleased(t, 2, "late load")
	require.EqualValues(t, 1, v.execs.Load())
}

// TestEvaluateJoined builds a vertex whose op is being canceled, and succeeds:
// the build takes the result, or runs the op again.
func TestEvaluateJoined(t *testing.T) {
	t.Parallel()
	log := &resultLog{}
	s := newLoggedSolver(t, &loggedStore{log: log})
	ready, discarded := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	v := &vtxLogged{vertex: vtx(vtxOpt{}), log: log, hook: func(context.Context) error {
		if calls.Add(1) == 1 {
			close(ready)
			<-discarded
		}
		return nil
	}}
	j := newTestJob(t, s, "again")
	wait := discardEarly(t, s, Edge{Vertex: v}, ready)
	var eg errgroup.Group
	eg.Go(func() error {
		res, err := j.Evaluate(t.Context(), Edge{Vertex: v})
		if err != nil {
			return err
		}
		if r, ok := res.Sys().(*dummyResult); !ok || log.find(r.id).released.Load() != 0 {
			return errors.New("the result has been released already")
		}
		return res.Release(t.Context())
	})
	require.Eventually(t, func() bool {
		return slices.Contains(sessionsOf(s, v), "again")
	}, 10*time.Second, time.Millisecond)
	close(discarded)
	require.NoError(t, eg.Wait())
	require.NoError(t, j.Discard())
	wait()
	log.requireReleased(t, 1, "joined")
}

// TestEvaluateEnded has a job that ends while it evaluates two vertices: what it
// owns is gone and its session lent to nobody at once, its vertices go with the
// second one.
func TestEvaluateEnded(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "j")
	var ready sync.WaitGroup
	var vertices []*vtxLogged
	var stop [2]chan struct{}
	var done [2]chan error
	for i := range stop {
		stop[i], done[i] = make(chan struct{}), make(chan error, 1)
		v := &vtxLogged{vertex: vtx(vtxOpt{}), log: &resultLog{}, hook: func(context.Context) error {
			ready.Done()
			<-stop[i]
			return nil
		}}
		vertices = append(vertices, v)
		ready.Add(1)
		go func() {
			_, err := j.Evaluate(t.Context(), Edge{Vertex: v})
			done[i] <- err
		}()
	}
	ready.Wait()
	require.NoError(t, j.Register(t.Context(), Edge{Vertex: vertices[0]}))
	require.Equal(t, []string{"j"}, sessionsOf(s, vertices[1]))
	require.NoError(t, j.Discard())
	require.NoError(t, j.Discard(), "once more")
	require.False(t, j.Owns(vertices[0].Digest()))
	for i, v := range vertices {
		require.NotNil(t, s.getState(Edge{Vertex: v}), "it is held until both have returned")
		require.Equal(t, []string{"j"}, sessionsOf(s, v), "its own op has it until it is canceled")
		other := newTestJob(t, s, fmt.Sprintf("other%d", i))
		_, err := s.load(t.Context(), v, nil, other)
		require.NoError(t, err)
		require.Equal(t, []string{other.id}, sessionsOf(s, v), "nobody else has it")
		require.NoError(t, other.Discard())
		close(stop[i])
		require.ErrorIs(t, <-done[i], ErrJobDiscarded)
	}
	requireEmpty(t, s)
	for _, v := range vertices {
		v.log.requireReleased(t, 1, "ended")
	}
}

// TestEvaluateFailed has a job that ends after one of the vertices that it
// evaluated has failed, while it is still at another one. Whoever builds the
// first again must not be given the failure.
func TestEvaluateFailed(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	bad := newVtxSession(vtxOpt{name: "bad"})
	bad.fail.Store(true)
	top := newVtxSession(vtxOpt{name: "top", inputs: []Edge{{Vertex: bad}}})
	ready, stop, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	in := vtx(vtxOpt{name: "in"})
	slow := &vtxLogged{vertex: vtx(vtxOpt{name: "slow", inputs: []Edge{{Vertex: in}}}), log: &resultLog{}, hook: func(context.Context) error {
		close(ready)
		<-stop
		return nil
	}}
	j := newTestJob(t, s, "j")
	go func() {
		_, err := j.Evaluate(t.Context(), Edge{Vertex: slow})
		done <- err
	}()
	<-ready
	_, err := j.Evaluate(t.Context(), Edge{Vertex: top})
	require.ErrorContains(t, err, "op bad failed")
	require.NoError(t, j.Discard())
	require.NotNil(t, s.getState(Edge{Vertex: slow}))
	require.NotNil(t, s.getState(Edge{Vertex: in}), "what is evaluated needs it")

	bad.fail.Store(false)
	other := newTestJob(t, s, "other")
	require.NoError(t, buildVertex(t, other, top))
	require.NoError(t, other.Discard())
	close(stop)
	require.ErrorIs(t, <-done, ErrJobDiscarded)
	requireEmpty(t, s)
}

// TestEvaluateHung has an op that does not stop: it is not in the way of others
// forever.
func TestEvaluateHung(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestSolver(t)
		j := newTestJob(t, s, "j")
		stop, done := make(chan struct{}), make(chan error, 1)
		v := &vtxLogged{vertex: vtx(vtxOpt{}), log: &resultLog{}, hook: func(context.Context) error {
			<-stop
			return nil
		}}
		go func() {
			_, err := j.Evaluate(t.Context(), Edge{Vertex: v})
			done <- err
		}()
		synctest.Wait()
		require.NoError(t, j.Discard())
		time.Sleep(holdTimeout - time.Second)
		require.NotNil(t, s.getState(Edge{Vertex: v}))
		time.Sleep(2 * time.Second)
		requireEmpty(t, s)
		close(stop)
		require.ErrorIs(t, <-done, ErrJobDiscarded)
		j.CloseProgress()
		time.Sleep(time.Minute) // what the solver does in the background ends
	})
}

func TestEvaluateAfterDiscard(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	j := newTestJob(t, s, "j")
	require.NoError(t, j.Discard())
	_, err := j.Evaluate(t.Context(), Edge{Vertex: vtx(vtxOpt{name: "v"})})
	require.ErrorIs(t, err, ErrJobDiscarded)
	require.ErrorContains(t, err, "failed to build v with job j")
	requireEmpty(t, s)
}

// TestEvaluateRace cancels and discards builds of random graphs at random
// times, with owners, several outputs and loads from the cache: in the end each
// result has been released once. See docs/architecture.md on what upstream
// drops in edge merges.
func TestEvaluateRace(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-model.seed %d", seed)
	var logs []*resultLog
	results := 0
	for round := range uint64(*evaluateRounds) {
		log := runEvaluateRace(t, seed+round)
		logs = append(logs, log)
		results += len(log.results)
	}
	for i, log := range logs {
		log.requireOnce(t, fmt.Sprintf("-model.seed %d -evaluate.rounds 1", seed+uint64(i)))
	}
	t.Logf("%d results", results)
}

func runEvaluateRace(t *testing.T, seed uint64) *resultLog {
	msg := fmt.Sprintf("-model.seed %d -evaluate.rounds 1", seed)
	rnd := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec
	log := &resultLog{}
	store := &loggedStore{log: log, hook: func() { time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond) }} //nolint:gosec
	s := newLoggedSolver(t, store)
	defer s.Close()

	graph := func(name string) (vertices []Edge) {
		for i := range 4 + rnd.IntN(8) {
			opt := vtxOpt{
				name:         fmt.Sprintf("%s%d", name, i),
				cacheKeySeed: fmt.Sprintf("%s%d", name, i),
				ignoreCache:  rnd.IntN(4) == 0,
			}
			for _, in := range rnd.Perm(i)[:min(i, rnd.IntN(3))] {
				in := vertices[in]
				in.Index = Index(rnd.IntN(2))
				opt.inputs = append(opt.inputs, in)
			}
			stubborn, fails := rnd.IntN(2) == 0, rnd.IntN(12) == 0
			vertices = append(vertices, Edge{Vertex: &vtxLogged{vertex: vtx(opt), log: log, outputs: 2, hook: func(ctx context.Context) error {
				wait := time.After(time.Duration(rand.IntN(600)) * time.Microsecond) //nolint:gosec
				if stubborn {                                                        // succeeds although it is canceled
					ctx = context.WithoutCancel(ctx)
				}
				select {
				case <-wait:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if fails {
					return errOpFailed
				}
				return nil
			}}})
		}
		return vertices
	}

	vertices := graph("v")
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for n := range 2 + rnd.IntN(6) {
		e := vertices[rnd.IntN(len(vertices))]
		e.Index = Index(rnd.IntN(2))
		owned := vertices[rnd.IntN(len(vertices))]
		registers, cancels, early := rnd.IntN(3) == 0, rnd.IntN(2) == 0, rnd.IntN(2) == 0
		start := time.Duration(rnd.IntN(1500)) * time.Microsecond
		stop := time.Duration(rnd.IntN(1500)) * time.Microsecond
		j := newTestJob(t, s, fmt.Sprintf("j%d", n))
		wg.Go(func() {
			if !cancels || !early {
				defer j.Discard()
			}
			if registers {
				j.Register(t.Context(), owned)
			}
			time.Sleep(start)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(errors.WithStack(context.Canceled))
			if cancels {
				wg.Go(func() {
					time.Sleep(stop)
					cancel(errors.WithStack(context.Canceled))
					if early {
						j.Discard()
					}
				})
			}
			res, err := j.Evaluate(ctx, e)
			if err == nil {
				res.Release(context.WithoutCancel(ctx))
			} else if !cancels && !strings.Contains(err.Error(), errOpFailed.Error()) {
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		require.NoError(t, *err, "%s: of a build that was not canceled", msg)
	}
	requireEmpty(t, s)
	log.requireReleased(t, 0, msg)
	return log
}
