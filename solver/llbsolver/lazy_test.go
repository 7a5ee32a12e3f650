package llbsolver

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	gw "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/testutil"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/graphload"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func marshal(t *testing.T, st llb.State) *pb.Definition {
	def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
	require.NoError(t, err)
	return def.ToPB()
}

func run(st llb.State, name string, opts ...llb.RunOption) llb.State {
	return st.Run(append([]llb.RunOption{llb.Shlex(name), llb.WithCustomName(name)}, opts...)...).Root()
}

func lazySolve(t *testing.T, br *provenanceBridge, req frontend.SolveRequest) solver.ResultProxy {
	res, err := br.Solve(t.Context(), req, "")
	require.NoError(t, err)
	require.NotNil(t, res.Ref)
	return res.Ref
}

func evaluate(t *testing.T, ref solver.ResultProxy) error {
	_, err := ref.Result(t.Context())
	return err
}

func TestLazySolveLendsSession(t *testing.T) {
	b := newBench(t)
	baseState := run(llb.Image("docker.io/library/img"), "base")

	base, baseBridge := b.job("base")
	baseRef := lazySolve(t, baseBridge, frontend.SolveRequest{Definition: marshal(t, baseState)})
	require.Empty(t, b.seen("base"), "a lazy solve runs nothing")

	child, childBridge := b.job("child")
	require.NoError(t, evaluate(t, lazySolve(t, childBridge, frontend.SolveRequest{Definition: marshal(t, run(baseState, "child"))})))
	require.Equal(t, [][]string{{"base", "child"}}, b.seen("base"))
	require.Equal(t, [][]string{{"child"}}, b.seen("child"))

	require.NoError(t, child.Discard())
	require.NoError(t, evaluate(t, baseRef))
	require.Len(t, b.seen("base"), 1, "base takes the result of the child")
	require.NoError(t, base.Discard())
}

func TestLazySolveSwitchedOff(t *testing.T) {
	enabled := graphload.Enabled
	graphload.Enabled = func() bool { return false }
	defer func() { graphload.Enabled = enabled }()

	b := newBench(t)
	baseState := run(llb.Image("docker.io/library/img"), "base")
	_, baseBridge := b.job("base")
	lazySolve(t, baseBridge, frontend.SolveRequest{Definition: marshal(t, baseState)})
	require.Zero(t, b.parsed.Load(), "nothing is loaded")

	_, childBridge := b.job("child")
	require.NoError(t, evaluate(t, lazySolve(t, childBridge, frontend.SolveRequest{Definition: marshal(t, run(baseState, "child"))})))
	require.Equal(t, [][]string{{"child"}}, b.seen("base"))
}

// frontendFunc is a function as a frontend.
type frontendFunc func(ctx context.Context, br frontend.FrontendLLBBridge, inputs map[string]*pb.Definition, sid string) (*frontend.Result, error)

func (f frontendFunc) Solve(ctx context.Context, br frontend.FrontendLLBBridge, _ executor.Executor, _ map[string]string, inputs map[string]*pb.Definition, sid string, _ *session.Manager) (*frontend.Result, error) {
	return f(ctx, br, inputs, sid)
}

// testFrontends returns "inner", which solves each of its inputs, and "outer", which
// solves inner and then something for itself.
func testFrontends(t *testing.T, own llb.State) map[string]frontend.Frontend {
	return map[string]frontend.Frontend{
		"inner": frontendFunc(func(ctx context.Context, br frontend.FrontendLLBBridge, inputs map[string]*pb.Definition, sid string) (*frontend.Result, error) {
			res := &frontend.Result{}
			for k, def := range inputs {
				r, err := br.Solve(ctx, frontend.SolveRequest{Definition: def}, sid)
				if err != nil {
					return nil, err
				}
				_, split := solver.SplitResultProxy(r.Ref) // the forwarder does the same
				res.AddRef(k, split)
			}
			return res, nil
		}),
		"outer": frontendFunc(func(ctx context.Context, br frontend.FrontendLLBBridge, inputs map[string]*pb.Definition, sid string) (*frontend.Result, error) {
			if _, err := br.Solve(ctx, frontend.SolveRequest{Definition: marshal(t, own)}, sid); err != nil {
				return nil, err
			}
			return br.Solve(ctx, frontend.SolveRequest{Frontend: "inner", FrontendInputs: inputs}, sid)
		}),
	}
}

// TestChainedOn has the cases in which a build that solves steps of base is chained on
// it, and those in which it is not.
func TestChainedOn(t *testing.T) {
	img := llb.Image("docker.io/library/img")
	below := run(img, "below")
	base := run(below, "base")
	internal := run(img, "internal")
	byInput := func(st llb.State) frontend.SolveRequest {
		return frontend.SolveRequest{Frontend: "outer", FrontendInputs: map[string]*pb.Definition{"in": marshal(t, st)}}
	}
	raw := func(st llb.State) frontend.SolveRequest {
		return frontend.SolveRequest{Definition: marshal(t, st)}
	}
	unconnected := raw(run(below, "unconnected"))
	unconnected.Definition.Def = append([][]byte{resultOp(marshal(t, base))}, unconnected.Definition.Def...)

	for _, tc := range []struct {
		name    string
		base    frontend.SolveRequest
		child   frontend.SolveRequest
		chained bool
	}{
		{"definition on the result", raw(base), raw(run(base, "child")), true},
		{"definition far above the result", raw(base), raw(run(run(run(base, "a"), "b"), "child")), true},
		{"the result itself", raw(base), raw(base), false},
		{"definition on what the result is built on", raw(base), raw(run(below, "child")), false},
		{"op that is no ancestor", raw(base), unconnected, false},
		{"input that is the result", raw(base), byInput(base), true},
		{"input on the result", raw(base), byInput(run(base, "child")), true},
		{"input that the result is built on", raw(base), byInput(below), false},
		{"result of a frontend", byInput(base), raw(run(base, "child")), true},
		{"result of a frontend as input", byInput(base), byInput(base), true},
		{"what a frontend solved for itself", byInput(base), raw(run(internal, "child")), false},
		{"frontend that solves the result", raw(internal), byInput(below), false},
		{"forced", withEvaluate(raw(base)), withEvaluate(raw(run(base, "child"))), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			_, baseBridge := b.job("base")
			baseBridge.frontends = testFrontends(t, internal)
			_, err := baseBridge.Solve(t.Context(), tc.base, "")
			require.NoError(t, err)
			child, childBridge := b.job("child")
			childBridge.frontends = testFrontends(t, run(internal, "of the frontend"))
			_, err = childBridge.Solve(t.Context(), tc.child, "")
			require.NoError(t, err)
			require.Equal(t, tc.chained, child.HasBases())
		})
	}

	// what the daemon solves for an SBOM does not come from a client
	b := newBench(t)
	_, baseBridge := b.job("base")
	lazySolve(t, baseBridge, raw(base))
	other, _ := b.job("other")
	lazySolve(t, b.bridge(other), raw(run(base, "scan")))
	require.False(t, other.HasBases())
}

func withEvaluate(req frontend.SolveRequest) frontend.SolveRequest {
	req.Evaluate = true
	return req
}

func TestLazySolveThroughFrontends(t *testing.T) {
	b := newBench(t)
	_, baseBridge := b.job("base")
	baseBridge.frontends = testFrontends(t, llb.Scratch().File(llb.Mkdir("/x", 0o755)))
	states := map[string]llb.State{}
	inputs := map[string]*pb.Definition{}
	for _, name := range []string{"amd64", "arm64"} {
		states[name] = run(llb.Image("docker.io/library/img-"+name), name)
		inputs[name] = marshal(t, states[name])
	}
	_, err := baseBridge.Solve(t.Context(), frontend.SolveRequest{Frontend: "outer", FrontendInputs: inputs, Evaluate: true}, "")
	require.NoError(t, err)
	parsed := b.parsed.Load()

	_, childBridge := b.job("child")
	for name, st := range states {
		require.NoError(t, evaluate(t, lazySolve(t, childBridge, frontend.SolveRequest{Definition: marshal(t, run(st, "child"))})))
		require.Equal(t, [][]string{{"base"}}, b.seen(name))
	}
	require.Equal(t, int64(2), parsed, "each source is loaded once")
}

// TestForcedSolveRegisters solves a step forced, and then the same step lazily. The
// build of the forced solve is the older owner.
func TestForcedSolveRegisters(t *testing.T) {
	b := newBench(t)
	img := llb.Image("docker.io/library/img")
	req := frontend.SolveRequest{Definition: marshal(t, run(img, "base"))}
	_, forced := b.job("forced")
	_, err := forced.Solve(t.Context(), withEvaluate(req), "")
	require.NoError(t, err)
	_, lazy := b.job("lazy")
	lazySolve(t, lazy, req)
	_, child := b.job("child")
	again := run(run(img, "base", llb.IgnoreCache), "child") // the same digest
	require.NoError(t, evaluate(t, lazySolve(t, child, frontend.SolveRequest{Definition: marshal(t, again)})))
	require.Equal(t, [][]string{{"forced"}, {"forced", "lazy", "child"}}, b.seen("base"))
}

// TestLazySolveStranger lets a build solve the same definition as another one, without
// being chained on it.
func TestLazySolveStranger(t *testing.T) {
	b := newBench(t)
	req := frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))}
	_, stranger := b.job("stranger")
	lazySolve(t, stranger, req)
	_, br := b.job("build")
	require.NoError(t, evaluate(t, lazySolve(t, br, req)))
	require.Equal(t, [][]string{{"build"}}, b.seen("base"))
}

func TestLazySolveErrorsWait(t *testing.T) {
	denied := []*spb.Policy{{Rules: []*spb.Rule{{
		Action:   spb.PolicyAction_DENY,
		Selector: &spb.Selector{Identifier: "docker-image://docker.io/library/img*", MatchType: spb.MatchType_WILDCARD},
	}}}}
	base := run(llb.Image("docker.io/library/img"), "base")
	insecure := run(llb.Image("docker.io/library/img"), "insecure", llb.Security(llb.SecurityModeInsecure))

	missing := marshal(t, base)
	missing.Def = missing.Def[1:]

	for _, tc := range []struct {
		name string
		req  frontend.SolveRequest
	}{
		{name: "denied by policy", req: frontend.SolveRequest{Definition: marshal(t, base), SourcePolicies: denied}},
		{name: "not entitled", req: frontend.SolveRequest{Definition: marshal(t, insecure)}},
		{name: "missing input", req: frontend.SolveRequest{Definition: missing}},
		{name: "not LLB", req: frontend.SolveRequest{Definition: &pb.Definition{Def: [][]byte{[]byte("\xff")}}}},
		{name: "no vertex", req: frontend.SolveRequest{Definition: &pb.Definition{Def: [][]byte{}}}},
		{name: "nil policy", req: frontend.SolveRequest{Definition: marshal(t, base), SourcePolicies: []*spb.Policy{nil}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			enabled := graphload.Enabled
			graphload.Enabled = func() bool { return false }
			_, br := b.job("upstream")
			want := evaluate(t, lazySolve(t, br, tc.req))
			graphload.Enabled = enabled
			require.Error(t, want)

			b = newBench(t)
			_, br = b.job("job")
			ref := lazySolve(t, br, tc.req)
			evaluated := b.parsed.Load()
			for range 2 {
				require.EqualError(t, evaluate(t, ref), want.Error())
			}
			if tc.req.SourcePolicies != nil {
				require.Equal(t, evaluated, b.parsed.Load(), "the policy is asked once, denials included")
			}

			tc.req.Evaluate = true
			_, err := br.Solve(t.Context(), tc.req, "")
			require.EqualError(t, err, want.Error())
		})
	}
}

func TestLazySolvePolicyOnce(t *testing.T) {
	b := newBench(t)
	_, br := b.job("job")
	ref := lazySolve(t, br, frontend.SolveRequest{
		Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base")),
		SourcePolicies: []*spb.Policy{{Rules: []*spb.Rule{{
			Action:   spb.PolicyAction_ALLOW,
			Selector: &spb.Selector{Identifier: "*", MatchType: spb.MatchType_WILDCARD},
		}}}},
	})
	require.Equal(t, int64(1), b.parsed.Load())
	require.NoError(t, evaluate(t, ref))
	require.NoError(t, evaluate(t, ref))
	require.Equal(t, int64(1), b.parsed.Load())
}

func TestLazySolveCanceledLoad(t *testing.T) {
	b := newBench(t)
	_, br := b.job("job")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.WithStack(context.Canceled))
	res, err := br.Solve(ctx, frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))}, "")
	require.NoError(t, err)
	require.NoError(t, evaluate(t, res.Ref), "a canceled load is retried")
}

// TestLazySolveLoadAtDeadline uses a client whose deadline for the solve is too short.
func TestLazySolveLoadAtDeadline(t *testing.T) {
	b := newBench(t)
	_, br := b.job("job")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 0, errors.WithStack(context.DeadlineExceeded))
	defer cancel()
	res, err := br.Solve(ctx, frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))}, "")
	require.NoError(t, err)
	require.NoError(t, evaluate(t, res.Ref), "a load that reached its deadline is retried")
}

func TestLazySolveHasNoEffects(t *testing.T) {
	b := newBench(t)
	req := frontend.SolveRequest{
		Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base", llb.IgnoreCache,
			llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("cache", llb.CacheMountShared)))),
		CacheImports: []gw.CacheOptionsEntry{{Type: "test", Attrs: map[string]string{"a": "b"}}},
	}
	_, br := b.job("job")
	ref := lazySolve(t, br, req)
	require.Empty(t, b.pruned, "only building prunes cache mounts")
	require.Zero(t, b.imports.Load(), "only building imports caches")

	require.NoError(t, evaluate(t, ref))
	require.Equal(t, []map[string]bool{{"cache": false}}, b.pruned)
	require.Eventually(t, func() bool { return b.imports.Load() == 1 }, 10*time.Second, time.Millisecond)
}

func TestLazySolveCacheImportForChild(t *testing.T) {
	base := run(llb.Image("docker.io/library/img"), "base")
	for _, tc := range []struct {
		name  string
		other llb.State
		want  int64
	}{
		{"child", run(base, "child"), 1},
		{"stranger", base, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			_, baseBridge := b.job("base")
			lazySolve(t, baseBridge, frontend.SolveRequest{
				Definition:   marshal(t, base),
				CacheImports: []gw.CacheOptionsEntry{{Type: "test", Attrs: map[string]string{"a": "b"}}},
			})
			require.Zero(t, b.imports.Load())
			_, other := b.job("other")
			require.NoError(t, evaluate(t, lazySolve(t, other, frontend.SolveRequest{Definition: marshal(t, tc.other)})))
			require.Equal(t, tc.want, b.imports.Load(), "only a child queries the cache that base imports")
		})
	}
}

// TestLazySolveCacheImportOfEndedBase ends a base before its cache is queried.
func TestLazySolveCacheImportOfEndedBase(t *testing.T) {
	b := newBench(t)
	st := run(llb.Image("docker.io/library/img"), "base")
	base, baseBridge := b.job("base")
	lazySolve(t, baseBridge, frontend.SolveRequest{
		Definition:   marshal(t, st),
		CacheImports: []gw.CacheOptionsEntry{{Type: "test", Attrs: map[string]string{"a": "b"}}},
	})
	_, childBridge := b.job("child")
	ref := lazySolve(t, childBridge, frontend.SolveRequest{Definition: marshal(t, run(st, "child"))})
	require.NoError(t, base.Discard())
	require.NoError(t, evaluate(t, ref))
	require.Zero(t, b.imports.Load(), "a build that has ended imports nothing")
}

// plainBuilder is a builder that is not a job, like the builder of a nested build.
type plainBuilder struct {
	solver.Builder
}

func TestLazySolveNestedBuild(t *testing.T) {
	b := newBench(t)
	j, _ := b.job("job")
	ref := lazySolve(t, b.bridge(plainBuilder{j}), frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))})
	require.Zero(t, b.parsed.Load())
	require.NoError(t, evaluate(t, ref))
}

func TestLazySolveAfterDiscard(t *testing.T) {
	b := newBench(t)
	j, br := b.job("job")
	before := lazySolve(t, br, frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "before"))})
	require.NoError(t, j.Discard())
	require.ErrorIs(t, evaluate(t, before), solver.ErrJobDiscarded)
	require.Empty(t, b.seen("before"))
	ref := lazySolve(t, br, frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))})
	require.ErrorIs(t, evaluate(t, ref), solver.ErrJobDiscarded)
}

// TestForcedSolveReleases solves two refs, forced, of which one fails. The client does
// not receive the other one, so its result is released.
func TestForcedSolveReleases(t *testing.T) {
	b := newBench(t)
	succeeded := make(chan struct{})
	b.fail = func(name string) error {
		if name == "bad" {
			<-succeeded
			return errors.New("bad failed")
		}
		return nil
	}
	j, br := b.job("job")
	br.frontends = map[string]frontend.Frontend{"two": frontendFunc(func(_ context.Context, br frontend.FrontendLLBBridge, _ map[string]*pb.Definition, _ string) (*frontend.Result, error) {
		res := &frontend.Result{}
		for _, name := range []string{"good", "bad"} {
			ref := lazySolve(t, br.(*provenanceBridge), frontend.SolveRequest{Definition: marshal(t, run(llb.Scratch(), name))})
			if name == "good" {
				ref = &notifiedRef{ref, succeeded}
			}
			res.AddRef(name, ref)
		}
		return res, nil
	})}
	_, err := br.Solve(t.Context(), frontend.SolveRequest{Frontend: "two", Evaluate: true}, "")
	require.ErrorContains(t, err, "bad failed")
	require.NoError(t, j.Discard())
	require.Eventually(t, func() bool { return b.results.Load() == 0 }, 10*time.Second, time.Millisecond)
}

// notifiedRef signals that it has been evaluated.
type notifiedRef struct {
	solver.ResultProxy
	evaluated chan struct{}
}

func (r *notifiedRef) Result(ctx context.Context) (solver.CachedResult, error) {
	defer close(r.evaluated)
	return r.ResultProxy.Result(ctx)
}

// TestEndedJobKeepsNothing checks that refs, which hold definitions, are freed with their
// build.
func TestEndedJobKeepsNothing(t *testing.T) {
	b := newBench(t)
	refs := map[string]weak.Pointer[resultProxy]{}
	func() {
		j, br := b.job("job")
		for _, name := range []string{"solved", "solved and released", "evaluated and released"} {
			ref := lazySolve(t, br, frontend.SolveRequest{Definition: marshal(t, run(llb.Scratch(), name))})
			refs[name] = weak.Make(ref.(*resultProxy))
			if name == "solved" {
				continue
			}
			if name == "evaluated and released" {
				require.NoError(t, evaluate(t, ref))
			}
			require.NoError(t, ref.Release(t.Context()))
		}
		j.CloseProgress()
		require.NoError(t, j.Discard())
	}()
	for name, ref := range refs {
		require.Eventually(t, func() bool {
			runtime.GC()
			return ref.Value() == nil
		}, 5*time.Second, 10*time.Millisecond, name)
	}
}

// testRef is a ref whose evaluation the test controls.
type testRef struct {
	solver.ResultProxy
	id       string
	result   func(context.Context) error
	released atomic.Int64
}

func (r *testRef) Release(context.Context) error {
	r.released.Add(1)
	return nil
}

func (r *testRef) ID() string { return r.id }

func (r *testRef) Result(ctx context.Context) (solver.CachedResult, error) {
	return nil, r.result(ctx)
}

func TestEvaluateRefs(t *testing.T) {
	t.Parallel()

	t.Run("at the same time", func(t *testing.T) {
		t.Parallel()
		const n = 5
		var wg sync.WaitGroup
		wg.Add(n)
		res := &frontend.Result{}
		together := func(context.Context) error {
			wg.Done()
			wg.Wait() // for all others
			return nil
		}
		for i := range n - 1 {
			res.AddRef(fmt.Sprint(i), &testRef{id: fmt.Sprint(i), result: together})
		}
		res.AddAttestation("0", frontend.Attestation{Ref: &testRef{id: "attestation", result: together}})
		require.NoError(t, evaluateRefs(t.Context(), res))
	})

	t.Run("first error wins", func(t *testing.T) {
		t.Parallel()
		for range 1000 {
			canceled := make(chan struct{})
			res := &frontend.Result{}
			res.AddRef("slow", &testRef{id: "slow", result: func(ctx context.Context) error {
				<-ctx.Done()
				close(canceled)
				return errors.New("too late")
			}})
			res.AddRef("bad", &testRef{id: "bad", result: func(context.Context) error { return errors.New("first") }})
			require.EqualError(t, evaluateRefs(t.Context(), res), "first")
			<-canceled
		}
	})

	t.Run("caller cancels", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		res := &frontend.Result{}
		res.SetRef(&testRef{id: "ref", result: func(ctx context.Context) error {
			cancel(errors.WithStack(context.Canceled))
			<-ctx.Done()
			return errors.WithStack(context.Cause(ctx))
		}})
		require.ErrorIs(t, evaluateRefs(ctx, res), context.Canceled)
	})

	t.Run("nothing to do", func(t *testing.T) {
		t.Parallel()
		require.NoError(t, evaluateRefs(t.Context(), &frontend.Result{}))
		res := &frontend.Result{}
		res.AddRef("none", nil)
		require.NoError(t, evaluateRefs(t.Context(), res))
	})
}

// TestSessionConnectsLate uses a client whose first request arrives before its session.
// The job knows the session as soon as it is connected, and notices when it is closed.
func TestSessionConnectsLate(t *testing.T) {
	if !graphload.Enabled() {
		t.Skip("nothing is lent")
	}
	b := newBench(t)
	base, br := b.job("base")
	sm, err := session.NewManager()
	require.NoError(t, err)
	br.sm = sm
	s, err := session.NewSession(t.Context(), "")
	require.NoError(t, err)

	_, err = br.Solve(t.Context(), frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))}, s.ID())
	require.NoError(t, err)
	require.False(t, base.HasSession())

	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.WithoutCancel(t.Context()), session.Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn))))
	}()
	require.Eventually(t, base.HasSession, time.Minute, time.Millisecond)
	require.NoError(t, s.Close())
	<-done
}
