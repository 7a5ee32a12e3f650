package llbsolver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend"
	gw "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/compat"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/graphload"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// hangs bounds tests that hang.
const hangs = time.Minute

// aheadBench is a bench with evaluation ahead. Its steps can be held.
type aheadBench struct {
	*bench
	mu       sync.Mutex
	started  map[string]int
	canceled map[string]int
	held     map[string]chan struct{}
	err      map[string]error
}

func newAheadBench(t testing.TB) *aheadBench {
	ahead := graphload.Ahead
	graphload.Ahead = func() bool { return true }
	b := &aheadBench{bench: newBench(t), started: map[string]int{}, canceled: map[string]int{}, held: map[string]chan struct{}{}, err: map[string]error{}}
	b.run = b.step
	t.Cleanup(func() { graphload.Ahead = ahead })
	return b
}

func (b *aheadBench) step(ctx context.Context, name string) error {
	b.mu.Lock()
	b.started[name]++
	held := b.held[name]
	b.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			b.mu.Lock()
			b.canceled[name]++
			b.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err[name]
}

// hold lets a step wait until the returned function is called.
func (b *aheadBench) hold(name string) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan struct{})
	b.held[name] = ch
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.held, name)
		close(ch)
	}
}

func (b *aheadBench) fails(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err[name] = err
}

// runs returns how often a step has started, and been canceled.
func (b *aheadBench) runs(name string) (started, canceled int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.started[name], b.canceled[name]
}

func (b *aheadBench) waitStarted(name string, n int) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { started, _ := b.runs(name); return started >= n }, hangs, time.Millisecond, "%s has not started", name)
}

func (b *aheadBench) waitCanceled(name string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { _, canceled := b.runs(name); return canceled > 0 }, hangs, time.Millisecond, "%s is not canceled", name)
}

// quiet requires that a step has not started. The caller has observed another step that
// would start at the same time, so this one would have started by now.
func (b *aheadBench) notStarted(name string) {
	b.t.Helper()
	started, _ := b.runs(name)
	require.Zero(b.t, started, "%s has started", name)
}

// evaluation is an evaluation by a client.
type evaluation struct {
	t      testing.TB
	cancel context.CancelCauseFunc
	done   chan error
}

func startEvaluation(t testing.TB, ref solver.ResultProxy) *evaluation {
	ctx, cancel := context.WithCancelCause(t.Context())
	e := &evaluation{t: t, cancel: cancel, done: make(chan error, 1)}
	go func() {
		_, err := ref.Result(ctx)
		e.done <- err
	}()
	return e
}

func (e *evaluation) wait() error {
	e.t.Helper()
	select {
	case err := <-e.done:
		return err
	case <-time.After(hangs):
		e.t.Fatal("the evaluation hangs")
		return nil
	}
}

// end releases the refs and ends the build, as the gateway does.
func end(t testing.TB, j *solver.Job, refs ...solver.ResultProxy) {
	t.Helper()
	for _, ref := range refs {
		require.NoError(t, ref.Release(context.WithoutCancel(t.Context())))
	}
	require.NoError(t, j.Discard())
}

func (b *aheadBench) requireReleased() {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return b.results.Load() == 0 }, hangs, time.Millisecond, "results are left")
}

// joinsSteps skips tests in which builds join running steps, if the race detector is on:
// upstream's solver has data races there, which these tests do not cover.
func joinsSteps(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("upstream's solver has data races between builds that join a step")
	}
}

// apart returns a request that is chained on the result of st and has none of its
// steps, and the frontends that it needs. One frontend solves the given definition.
func apart(t *testing.T, own, st llb.State) (frontend.SolveRequest, map[string]frontend.Frontend) {
	def := marshal(t, own)
	return frontend.SolveRequest{Frontend: "apart", FrontendInputs: map[string]*pb.Definition{"in": marshal(t, st)}},
		map[string]frontend.Frontend{"apart": frontendFunc(func(ctx context.Context, br frontend.FrontendLLBBridge, _ map[string]*pb.Definition, sid string) (*frontend.Result, error) {
			return br.Solve(ctx, frontend.SolveRequest{Definition: def}, sid)
		})}
}

func raw(t *testing.T, st llb.State) frontend.SolveRequest {
	return frontend.SolveRequest{Definition: marshal(t, st)}
}

var aheadImage = llb.Image("docker.io/library/img")

// TestAheadRule lets base evaluate and a child solve, and checks if the child's step
// starts before its client asks.
func TestAheadRule(t *testing.T) {
	joinsSteps(t)
	below := run(aheadImage, "below")
	base := run(below, "base")
	child := run(base, "child")
	byInput := func(st llb.State) frontend.SolveRequest {
		return frontend.SolveRequest{Frontend: "outer", FrontendInputs: map[string]*pb.Definition{"in": marshal(t, st)}}
	}
	subrequest := byInput(child)
	subrequest.FrontendOpt = map[string]string{"requestid": "frontend.outline"}
	noCache := run(base, "child", llb.IgnoreCache,
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("cache", llb.CacheMountShared)))
	missing := raw(t, child)
	missing.Definition.Def = missing.Definition.Def[1:]

	for _, tc := range []struct {
		name   string
		base   frontend.SolveRequest
		child  frontend.SolveRequest
		direct bool // the child's build has no gateway client
		ahead  bool
	}{
		{name: "definition on the result", base: raw(t, base), child: raw(t, child), ahead: true},
		{name: "without cache", base: raw(t, base), child: raw(t, run(base, "child", llb.IgnoreCache)), ahead: true},
		{name: "input on the result", base: raw(t, base), child: byInput(child), ahead: true},
		{name: "result of a frontend", base: byInput(base), child: raw(t, child), ahead: true},
		{name: "forced base", base: withEvaluate(raw(t, base)), child: raw(t, child), ahead: true},
		{name: "definition on what the result is built on", base: raw(t, base), child: raw(t, run(below, "child"))},
		{name: "no relation", base: raw(t, base), child: raw(t, run(aheadImage, "child"))},
		{name: "subrequest", base: raw(t, base), child: subrequest},
		{name: "empties a cache mount", base: raw(t, base), child: raw(t, noCache)},
		{name: "cannot be loaded", base: raw(t, base), child: missing},
		{name: "not of a gateway client", base: raw(t, base), child: raw(t, child), direct: true},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/late=%t", tc.name, late), func(t *testing.T) {
				b := newAheadBench(t)
				// another child, which starts in any case
				witness := run(base, "witness")
				baseJob, baseBridge := b.job("base")
				baseBridge.frontends = testFrontends(t, run(aheadImage, "internal"))
				res, err := baseBridge.Solve(t.Context(), tc.base, "")
				require.NoError(t, err)
				baseRef := res.Ref
				if baseRef == nil {
					baseRef = res.Refs["in"]
				}
				if late {
					require.NoError(t, evaluate(t, baseRef))
				}

				childJob, childBridge := b.job("child")
				childBridge.frontends = testFrontends(t, run(aheadImage, "internal"))
				if tc.direct {
					childBridge.rootReq = &tc.child
				}
				childRes, err := childBridge.Solve(t.Context(), tc.child, "")
				require.NoError(t, err)
				witnessJob, witnessBridge := b.job("witness")
				witnessRef := lazySolve(t, witnessBridge, raw(t, witness))
				if !late && !tc.base.Evaluate {
					b.notStarted("below")
					b.notStarted("child")
					require.NoError(t, evaluate(t, baseRef))
				}
				b.waitStarted("witness", 1)
				if tc.ahead {
					b.waitStarted("child", 1)
				} else {
					b.notStarted("child")
				}
				b.notStarted("internal")

				var childRefs []solver.ResultProxy
				childRes.EachRef(func(ref solver.ResultProxy) error { childRefs = append(childRefs, ref); return nil })
				end(t, witnessJob, witnessRef)
				end(t, childJob, childRefs...)
				end(t, baseJob, baseRef)
				if tc.base.Frontend == "" { // the test's frontend keeps its half of the ref
					b.requireReleased()
				}
			})
		}
	}
}

// TestAheadFrontendIsNoEvaluation uses a base whose frontend evaluates what it solves for
// itself, as the Dockerfile frontend does with each Dockerfile. Its client evaluates
// nothing.
func TestAheadFrontendIsNoEvaluation(t *testing.T) {
	joinsSteps(t)
	b := newAheadBench(t)
	base := run(aheadImage, "base")
	_, baseBridge := b.job("base")
	baseBridge.frontends = map[string]frontend.Frontend{"reads": frontendFunc(func(ctx context.Context, br frontend.FrontendLLBBridge, _ map[string]*pb.Definition, sid string) (*frontend.Result, error) {
		for i := range 2 {
			res, err := br.Solve(ctx, raw(t, run(aheadImage, fmt.Sprintf("Dockerfile %d", i))), sid)
			if err != nil {
				return nil, err
			}
			if _, err := res.Ref.Result(ctx); err != nil {
				return nil, err
			}
		}
		return br.Solve(ctx, raw(t, base), sid)
	})}
	res, err := baseBridge.Solve(t.Context(), frontend.SolveRequest{Frontend: "reads"}, "")
	require.NoError(t, err)
	b.waitStarted("Dockerfile 1", 1)

	_, childBridge := b.job("child")
	lazySolve(t, childBridge, raw(t, run(base, "child")))
	_, err = baseBridge.Solve(t.Context(), frontend.SolveRequest{Frontend: "reads"}, "")
	require.NoError(t, err)
	b.notStarted("child")

	require.NoError(t, evaluate(t, res.Ref))
	b.waitStarted("child", 1)
}

// TestAheadOtherRef lets a child solve two definitions, of which one is chained on
// base.
func TestAheadOtherRef(t *testing.T) {
	joinsSteps(t)
	b := newAheadBench(t)
	base := run(aheadImage, "base")
	_, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	_, childBridge := b.job("child")
	lazySolve(t, childBridge, raw(t, run(aheadImage, "other")))
	lazySolve(t, childBridge, raw(t, run(base, "child")))
	lazySolve(t, childBridge, raw(t, run(aheadImage, "another")))
	require.NoError(t, evaluate(t, baseRef))
	b.waitStarted("child", 1)
	b.notStarted("other")
	b.notStarted("another")
}

// TestAheadOff runs without evaluation ahead.
func TestAheadOff(t *testing.T) {
	b := newAheadBench(t)
	graphload.Ahead = func() bool { return false }
	base := run(aheadImage, "base")
	_, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	require.IsType(t, &resultProxy{}, baseRef, "the refs are upstream's")
	_, childBridge := b.job("child")
	lazySolve(t, childBridge, raw(t, run(base, "child")))
	require.NoError(t, evaluate(t, baseRef))
	b.notStarted("child")
}

// TestAheadChain runs ten builds, each chained on the one before it. When the first one
// evaluates, all start, with the sessions that they would have in order.
func TestAheadChain(t *testing.T) {
	joinsSteps(t)
	for _, order := range []string{"solved before", "solved while base evaluates"} {
		t.Run(order, func(t *testing.T) {
			b := newAheadBench(t)
			const n = 10
			name := func(i int) string { return fmt.Sprintf("step%d", i) }
			release := b.hold("own9")
			st := aheadImage
			var refs []solver.ResultProxy
			var jobs []*solver.Job
			for i := range n {
				st = run(st, name(i), llb.AddMount("/own", run(aheadImage, fmt.Sprintf("own%d", i))))
				j, br := b.job(fmt.Sprintf("b%d", i))
				jobs = append(jobs, j)
				refs = append(refs, lazySolve(t, br, raw(t, st)))
				if i == 0 && order != "solved before" {
					require.NoError(t, evaluate(t, refs[0]))
				}
			}
			require.NoError(t, evaluate(t, refs[0]))
			b.waitStarted("own9", 1)
			b.waitStarted("step8", 1)
			b.notStarted("step9")
			release()
			for i, ref := range refs {
				require.NoError(t, evaluate(t, ref))
				started, _ := b.runs(name(i))
				require.Equal(t, 1, started, "%s runs once", name(i))
				require.Equal(t, fmt.Sprintf("b%d", i), b.seen(name(i))[0][0], "its session is asked first")
			}
			for i := range jobs {
				end(t, jobs[i], refs[i])
			}
			b.requireReleased()
		})
	}
}

// TestAheadTransitive uses a child in the middle whose frontend drops its input, so that
// the last build has no op of base.
func TestAheadTransitive(t *testing.T) {
	b := newAheadBench(t)
	base := run(aheadImage, "base")
	middle := run(llb.Image("docker.io/library/other"), "middle")
	_, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	_, middleBridge := b.job("middle")
	req, frontends := apart(t, middle, base)
	middleBridge.frontends = frontends
	lazySolve(t, middleBridge, req)
	_, lastBridge := b.job("last")
	req, lastBridge.frontends = apart(t, run(llb.Image("docker.io/library/third"), "last"), middle)
	lazySolve(t, lastBridge, req)

	require.NoError(t, evaluate(t, baseRef))
	b.waitStarted("middle", 1)
	b.waitStarted("last", 1)
}

// TestAheadJoin lets a client evaluate what runs ahead.
func TestAheadJoin(t *testing.T) {
	joinsSteps(t)
	base := run(aheadImage, "base")
	child := run(base, "child")
	setup := func(t *testing.T) (b *aheadBench, baseJob, childJob *solver.Job, baseRef, childRef solver.ResultProxy) {
		b = newAheadBench(t)
		baseJob, baseBridge := b.job("base")
		baseRef = lazySolve(t, baseBridge, raw(t, base))
		childJob, childBridge := b.job("child")
		childRef = lazySolve(t, childBridge, raw(t, child))
		return b, baseJob, childJob, baseRef, childRef
	}

	t.Run("while it runs", func(t *testing.T) {
		b, baseJob, childJob, baseRef, childRef := setup(t)
		release := b.hold("child")
		require.NoError(t, evaluate(t, baseRef))
		b.waitStarted("child", 1)
		e := startEvaluation(t, childRef)
		require.Never(t, func() bool { return len(e.done) > 0 }, 20*time.Millisecond, time.Millisecond)
		release()
		require.NoError(t, e.wait())
		require.NotNil(t, childRef.Provenance())
		for _, name := range []string{"base", "child"} {
			started, canceled := b.runs(name)
			require.Equal(t, 1, started, name)
			require.Zero(t, canceled, name)
		}
		require.Equal(t, [][]string{{"base", "child"}}, sessionSets(b.seen("base")))
		require.Equal(t, [][]string{{"child"}}, b.seen("child"))
		end(t, baseJob, baseRef)
		end(t, childJob, childRef)
		b.requireReleased()
	})
	t.Run("when it is done", func(t *testing.T) {
		b, baseJob, childJob, baseRef, childRef := setup(t)
		require.NoError(t, evaluate(t, baseRef))
		b.waitStarted("child", 1)
		require.Nil(t, childRef.Provenance(), "the client has not evaluated it")
		require.NoError(t, evaluate(t, childRef))
		require.NoError(t, evaluate(t, childRef))
		started, _ := b.runs("child")
		require.Equal(t, 1, started)
		end(t, childJob, childRef)
		end(t, baseJob, baseRef)
		b.requireReleased()
	})
	t.Run("and cancels", func(t *testing.T) {
		b, baseJob, childJob, baseRef, childRef := setup(t)
		b.hold("child")
		require.NoError(t, evaluate(t, baseRef))
		b.waitStarted("child", 1)
		e := startEvaluation(t, childRef)
		for { // the client has joined when it is canceled with the step
			time.Sleep(time.Millisecond)
			e.cancel(errors.WithStack(context.Canceled))
			require.ErrorIs(t, e.wait(), context.Canceled)
			if _, canceled := b.runs("child"); canceled > 0 {
				break
			}
		}
		b.mu.Lock()
		delete(b.held, "child")
		b.mu.Unlock()
		require.NoError(t, evaluate(t, childRef), "the step runs again")
		end(t, childJob, childRef)
		end(t, baseJob, baseRef)
		b.requireReleased()
	})
	t.Run("with several requests", func(t *testing.T) {
		b, baseJob, childJob, baseRef, childRef := setup(t)
		release := b.hold("child")
		require.NoError(t, evaluate(t, baseRef))
		b.waitStarted("child", 1)
		first, second := startEvaluation(t, childRef), startEvaluation(t, childRef)
		first.cancel(errors.WithStack(context.Canceled))
		require.ErrorIs(t, first.wait(), context.Canceled)
		release()
		require.NoError(t, second.wait())
		end(t, childJob, childRef)
		end(t, baseJob, baseRef)
		b.requireReleased()
	})
}

// sessionSets returns the sets of sessions that a step has seen, without their order:
// base and child join the step in any order.
func sessionSets(seen [][]string) [][]string {
	for i, ids := range seen {
		if len(ids) == 1 && ids[0] == "base" {
			seen[i] = []string{"base", "child"}
		}
	}
	return seen
}

// TestAheadFailure lets a child fail ahead. Its client gets the error when it evaluates,
// the step does not run again, and base does not notice.
func TestAheadFailure(t *testing.T) {
	joinsSteps(t)
	want := errors.New("child failed")
	base := run(aheadImage, "base")
	child := run(base, "child", llb.AddMount("/own", run(aheadImage, "own")))

	b := newAheadBench(t)
	graphload.Ahead = func() bool { return false }
	b.fails("own", want)
	_, br := b.job("alone")
	wantErr := evaluate(t, lazySolve(t, br, raw(t, child)))
	require.ErrorIs(t, wantErr, want)

	b = newAheadBench(t)
	b.fails("own", want)
	release := b.hold("base")
	baseJob, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	childJob, childBridge := b.job("child")
	childRef := lazySolve(t, childBridge, raw(t, child))
	grandchildJob, grandchildBridge := b.job("grandchild")
	grandchildRef := lazySolve(t, grandchildBridge, raw(t, run(child, "grandchild")))
	e := startEvaluation(t, baseRef)
	b.waitStarted("own", 1)

	// a stranger with the failing step runs it
	for _, ref := range []solver.ResultProxy{childRef, grandchildRef} { // both have left the step
		require.Eventually(t, func() bool { return ref.(*aheadRef).ahead.Err() != nil }, hangs, time.Millisecond)
	}
	b.fails("own", nil)
	strangerJob, strangerBridge := b.job("stranger")
	strangerRef := lazySolve(t, strangerBridge, raw(t, run(aheadImage, "own")))
	require.NoError(t, evaluate(t, strangerRef), "no state keeps the failure")
	started, _ := b.runs("own")
	require.GreaterOrEqual(t, started, 2)

	require.Empty(t, e.done, "base is not disturbed")
	for range 2 {
		require.EqualError(t, evaluate(t, childRef), wantErr.Error())
	}
	again, _ := b.runs("own")
	require.Equal(t, started, again, "the step does not run again")
	release()
	require.NoError(t, e.wait())
	_, canceled := b.runs("base")
	require.Zero(t, canceled)
	end(t, strangerJob, strangerRef)
	end(t, grandchildJob, grandchildRef)
	end(t, childJob, childRef)
	end(t, baseJob, baseRef)
	b.requireReleased()
}

// TestAheadBaseFails lets base fail, be canceled or end while a child runs ahead. The
// solver cancels what runs, and the client evaluates as if it had not run.
func TestAheadBaseFails(t *testing.T) {
	joinsSteps(t)
	failure := errors.New("base failed")
	base := run(aheadImage, "base")
	child := run(base, "child", llb.AddMount("/own", run(aheadImage, "own")))
	grandchild := run(child, "grandchild", llb.AddMount("/own", run(aheadImage, "own of grandchild")))
	for _, tc := range []struct {
		name string
		stop func(b *aheadBench, e *evaluation)
		ends bool // the build of base ends afterwards
	}{
		{name: "fails", ends: true, stop: func(b *aheadBench, e *evaluation) {
			b.fails("base", failure)
			b.release("base")
			require.ErrorIs(b.t, e.wait(), failure)
			b.waitCanceled("own")
			b.fails("base", nil)
		}},
		{name: "is canceled", stop: func(b *aheadBench, e *evaluation) {
			e.cancel(errors.WithStack(context.Canceled))
			require.ErrorIs(b.t, e.wait(), context.Canceled)
			b.release("base")
		}},
		{name: "ends after it has evaluated", ends: true, stop: func(b *aheadBench, e *evaluation) {
			b.release("base")
			require.NoError(b.t, e.wait())
			_, canceled := b.runs("own")
			require.Zero(b.t, canceled)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newAheadBench(t)
			for _, name := range []string{"base", "own", "own of grandchild"} {
				b.hold(name)
			}
			baseJob, baseBridge := b.job("base")
			baseRef := lazySolve(t, baseBridge, raw(t, base))
			childJob, childBridge := b.job("child")
			childRef := lazySolve(t, childBridge, raw(t, child))
			grandchildJob, grandchildBridge := b.job("grandchild")
			grandchildRef := lazySolve(t, grandchildBridge, raw(t, grandchild))

			e := startEvaluation(t, baseRef)
			for _, name := range []string{"base", "own", "own of grandchild"} {
				b.waitStarted(name, 1)
			}
			tc.stop(b, e)
			if tc.ends {
				end(t, baseJob, baseRef)
			}
			b.waitCanceled("own")
			b.waitCanceled("own of grandchild")

			// nothing starts again, even if base evaluates
			if !tc.ends {
				require.NoError(t, evaluate(t, baseRef))
			}
			lateJob, lateBridge := b.job("late")
			lateRef := lazySolve(t, lateBridge, raw(t, run(child, "late")))
			b.release("own")
			b.release("own of grandchild")
			require.NoError(t, evaluate(t, childRef), "the child is evaluated again")
			require.NoError(t, evaluate(t, grandchildRef))
			for _, name := range []string{"base", "child", "own", "grandchild"} {
				_, canceled := b.runs(name)
				require.LessOrEqual(t, canceled, 1, name)
			}
			end(t, lateJob, lateRef)
			end(t, grandchildJob, grandchildRef)
			end(t, childJob, childRef)
			if !tc.ends {
				end(t, baseJob, baseRef)
			}
			b.requireReleased()
		})
	}
}

func (b *aheadBench) release(name string) {
	b.mu.Lock()
	ch := b.held[name]
	delete(b.held, name)
	b.mu.Unlock()
	close(ch)
}

// TestAheadSharedFailure lets base fail in a step that the child runs too. The child's
// client does not get that error after base has ended.
func TestAheadSharedFailure(t *testing.T) {
	joinsSteps(t)
	b := newAheadBench(t)
	failure := errors.New("no secret")
	base := run(aheadImage, "base")
	release := b.hold("base")
	baseJob, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	childJob, childBridge := b.job("child")
	childRef := lazySolve(t, childBridge, raw(t, run(base, "child", llb.AddMount("/own", run(aheadImage, "own")))))
	b.fails("base", failure)
	e := startEvaluation(t, baseRef)
	b.waitStarted("own", 1)
	release()
	require.ErrorIs(t, e.wait(), failure)
	end(t, baseJob, baseRef)
	b.fails("base", nil)
	require.NoError(t, evaluate(t, childRef))
	started, _ := b.runs("base")
	require.Equal(t, 2, started)
	end(t, childJob, childRef)
	b.requireReleased()
}

// TestAheadEnd ends a build whose refs run ahead, with and without releasing them.
func TestAheadEnd(t *testing.T) {
	joinsSteps(t)
	base := run(aheadImage, "base")
	for _, released := range []bool{true, false} {
		t.Run(fmt.Sprintf("released=%t", released), func(t *testing.T) {
			b := newAheadBench(t)
			baseJob, baseBridge := b.job("base")
			baseRef := lazySolve(t, baseBridge, raw(t, base))
			childJob, childBridge := b.job("child")
			var refs []solver.ResultProxy
			for _, name := range []string{"one", "two"} {
				b.hold(name)
				refs = append(refs, lazySolve(t, childBridge, raw(t, run(base, name))))
			}
			done := lazySolve(t, childBridge, raw(t, run(base, "done")))
			require.NoError(t, evaluate(t, baseRef))
			for _, name := range []string{"one", "two", "done"} {
				b.waitStarted(name, 1)
			}
			if released {
				require.NoError(t, refs[0].Release(t.Context()))
				_, canceled := b.runs("one")
				require.Equal(t, 1, canceled, "the release waits for it")
				b.waitCanceled("two")
				refs = refs[1:]
				refs = append(refs, done)
			} else {
				refs = nil
			}
			end(t, childJob, refs...)
			b.waitCanceled("one")
			b.waitCanceled("two")
			require.NoError(t, evaluate(t, baseRef))
			end(t, baseJob, baseRef)
			b.requireReleased()
		})
	}
}

// TestAheadVersions uses a child of another compatibility version. Steps that both build
// at the same time would fail, so the child waits for its client.
func TestAheadVersions(t *testing.T) {
	joinsSteps(t)
	b := newAheadBench(t)
	base := run(aheadImage, "base")
	baseJob, baseBridge := b.job("base")
	baseJob.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent)
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	other, otherBridge := b.job("other")
	other.SetValue(compat.JobValueKey, compat.CompatibilityVersionCurrent-1)
	lazySolve(t, otherBridge, raw(t, run(base, "other")))
	_, sameBridge := b.job("same")
	lazySolve(t, sameBridge, raw(t, run(base, "same")))
	require.NoError(t, evaluate(t, baseRef))
	b.waitStarted("same", 1)
	b.notStarted("other")
}

// TestAheadCacheImport uses a child with a slow cache import. Base does not wait for it,
// as it would if the scheduler waited for the import.
func TestAheadCacheImport(t *testing.T) {
	joinsSteps(t)
	b := newAheadBench(t)
	base := run(aheadImage, "base")
	_, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, raw(t, base))
	_, childBridge := b.job("child")
	importing, imported := make(chan struct{}), make(chan struct{})
	importer := childBridge.resolveCacheImporterFuncs["test"]
	childBridge.resolveCacheImporterFuncs["test"] = func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Importer, ocispecs.Descriptor, error) {
		close(importing)
		<-imported
		return importer(ctx, g, attrs)
	}
	req := raw(t, run(base, "child"))
	req.CacheImports = []gw.CacheOptionsEntry{{Type: "test"}}
	childRef := lazySolve(t, childBridge, req)
	e := startEvaluation(t, baseRef)
	<-importing
	require.NoError(t, e.wait())
	b.notStarted("child")
	close(imported)
	b.waitStarted("child", 1)
	require.NoError(t, evaluate(t, childRef))
	require.Equal(t, int64(1), b.imports.Load())
}

// TestAheadRace runs chains whose clients evaluate, cancel, release and end in random
// order, with and without common steps. Each client gets its results, nothing hangs and
// nothing is left.
func TestAheadRace(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rounds := 500
	if testing.Short() {
		rounds = 60
	}
	for _, joined := range []bool{false, true} {
		t.Run(fmt.Sprintf("joined=%t", joined), func(t *testing.T) {
			if joined {
				joinsSteps(t)
			}
			t.Logf("seed %d", seed)
			b := newAheadBench(t)
			var left atomic.Int64
			for round := range rounds {
				rnd := rand.New(rand.NewPCG(seed, uint64(round))) //nolint:gosec // not for secrets
				b.raceRound(t, rnd, fmt.Sprintf("r%d", round), joined, &left)
				b.requireReleased()
			}
			require.LessOrEqual(t, left.Load(), int64(1+rounds/100), "more than what upstream's scheduler does")
		})
	}
}

// leftOpen is the error of upstream's scheduler for a step whose last request is canceled
// while the scheduler handles it. A build that solves a canceled step again can get this
// error, with and without evaluation ahead.
const leftOpen = "buildkit scheduler error: return leaving outgoing open"

type raceBuild struct {
	job   *solver.Job
	ref   solver.ResultProxy
	fails bool // its own step fails, or a step that it depends on
}

func (b *aheadBench) raceRound(t *testing.T, rnd *rand.Rand, round string, joined bool, left *atomic.Int64) {
	n := 2 + rnd.IntN(6)
	var builds []*raceBuild
	var states []llb.State
	for i := range n {
		name := fmt.Sprintf("%s.%d", round, i)
		bd := &raceBuild{}
		builds = append(builds, bd)
		image := llb.Image("docker.io/library/" + name)
		on, base := image, -1
		if i > 0 {
			base = rnd.IntN(i)
			if joined {
				on, bd.fails = states[base], builds[base].fails
			}
		}
		if rnd.IntN(6) == 0 {
			b.fails(name, errors.Errorf("%s failed", name))
			bd.fails = true
		}
		states = append(states, run(on, name, llb.AddMount("/own", run(image, name+".own"))))
		j, br := b.job(name)
		bd.job = j
		if joined || base < 0 {
			bd.ref = lazySolve(t, br, raw(t, states[i]))
			continue
		}
		req, frontends := apart(t, states[i], states[base])
		br.frontends = frontends
		bd.ref = lazySolve(t, br, req)
	}
	var eg errgroup.Group
	for i, bd := range builds {
		after := time.Duration(rnd.IntN(2000)) * time.Microsecond
		what, cancelAfter := rnd.IntN(5), time.Duration(rnd.IntN(1000))*time.Microsecond
		eg.Go(func() error {
			time.Sleep(after)
			ctx, cancel := context.WithTimeoutCause(t.Context(), hangs, errors.New("hangs"))
			defer cancel()
			switch what {
			case 0: // never evaluates
			case 1: // cancels, and tries again
				canceled, cancel := context.WithTimeoutCause(ctx, cancelAfter, errors.WithStack(context.Canceled))
				_, _ = bd.ref.Result(canceled)
				cancel()
				fallthrough
			default:
				_, err := bd.ref.Result(ctx)
				if context.Cause(ctx) != nil {
					return context.Cause(ctx)
				}
				if err != nil && !bd.fails && strings.Contains(err.Error(), leftOpen) {
					left.Add(1)
				} else if bd.fails != (err != nil) {
					return errors.Errorf("%s: build %d: expected failure %t, got %v", round, i, bd.fails, err)
				}
			}
			if err := bd.ref.Release(context.WithoutCancel(ctx)); err != nil {
				return err
			}
			return bd.job.Discard()
		})
	}
	require.NoError(t, eg.Wait())
}
