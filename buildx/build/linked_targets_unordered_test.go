package build

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/docker/buildx/util/waitmap"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	pb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// hangTimeout bounds tests that hang.
const hangTimeout = time.Minute

// capsClient is the gateway client of a daemon with the given capabilities.
type capsClient struct {
	gateway.Client
	caps []string
}

func (c capsClient) BuildOpts() gateway.BuildOpts {
	var caps []*apicaps.PBCap
	for _, id := range c.caps {
		caps = append(caps, &apicaps.PBCap{ID: id, Enabled: true})
	}
	return gateway.BuildOpts{Caps: pb.Caps.CapSet(caps)}
}

var (
	loadingClient = capsClient{caps: []string{string(pb.CapGatewayEvaluate), "gateway.solve.load"}}
	orderedClient = capsClient{caps: []string{string(pb.CapGatewayEvaluate)}}
)

func parentAndChild() *linkedTargetState {
	return newLinkedTargetState(
		map[string][]string{"child": {"parent"}},
		map[string][]string{"parent": {"child"}},
	)
}

// wait waits until ch is closed or receives a value.
func wait[T any](t *testing.T, ch <-chan T, msg string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(hangTimeout):
		require.Fail(t, "hangs", msg)
	}
	return v
}

// TestLinkedTargetsUnordered evaluates a child while its parent is being evaluated.
// The child's evaluation ends first, but the child does not count as evaluated or
// completed before the parent does.
func TestLinkedTargetsUnordered(t *testing.T) {
	state := parentAndChild()
	childStarted, releaseParent := make(chan struct{}), make(chan struct{})
	childEvaluated, releaseChild := make(chan struct{}), make(chan struct{})
	done := map[string]chan error{"parent": make(chan error, 1), "child": make(chan error, 1)}

	parent, _ := state.forBuild(t.Context(), loadingClient)
	go func() {
		done["parent"] <- parent.run(t.Context(), "parent", struct{}{}, linkedTargetHooks{
			evaluate: func() error {
				<-releaseParent
				return nil
			},
		})
	}()
	child, _ := state.forBuild(t.Context(), loadingClient)
	go func() {
		done["child"] <- child.run(t.Context(), "child", struct{}{}, linkedTargetHooks{
			evaluate: func() error {
				close(childStarted)
				return nil
			},
			postEvaluate: func() error {
				close(childEvaluated)
				<-releaseChild
				return nil
			},
		})
	}()

	wait(t, childStarted, "the child is not evaluated beside its parent")
	assertNotSignaled(t, childEvaluated)
	close(releaseParent)
	wait(t, childEvaluated, "the parent has been evaluated")
	assertNotCompleted(t, done["parent"])
	close(releaseChild)
	require.NoError(t, wait(t, done["child"], "its parent has been evaluated"))
	require.NoError(t, wait(t, done["parent"], "its child has completed"))
}

// TestLinkedTargetsRegistration has a target with a parent and a child. The target
// is evaluated after the child has been solved, and completes after the child has.
func TestLinkedTargetsRegistration(t *testing.T) {
	state := newLinkedTargetState(
		map[string][]string{"middle": {"root"}, "leaf": {"middle"}},
		map[string][]string{"root": {"middle"}, "middle": {"leaf"}},
	)
	started, releaseLeaf := make(chan struct{}), make(chan struct{})
	middleDone, leafDone := make(chan error, 1), make(chan error, 1)
	state.evaluated.Set("root", struct{}{})
	middle, _ := state.forBuild(t.Context(), loadingClient)
	go func() {
		middleDone <- middle.run(t.Context(), "middle", struct{}{}, linkedTargetHooks{evaluate: func() error {
			close(started)
			return nil
		}})
	}()
	assertNotSignaled(t, started)
	leaf, _ := state.forBuild(t.Context(), loadingClient)
	go func() {
		leafDone <- leaf.run(t.Context(), "leaf", struct{}{}, linkedTargetHooks{evaluate: func() error {
			<-releaseLeaf
			return nil
		}})
	}()
	wait(t, started, "its child has been solved")
	assertNotCompleted(t, middleDone)
	close(releaseLeaf)
	require.NoError(t, wait(t, leafDone, "its parent has been evaluated"))
	require.NoError(t, wait(t, middleDone, "its child has completed"))
}

// TestLinkedTargetsOrdered has a daemon that does not load lazily solved results.
func TestLinkedTargetsOrdered(t *testing.T) {
	for _, c := range []capsClient{{}, orderedClient} {
		state := parentAndChild()
		evaluated := make(chan struct{})
		release := make(chan struct{})
		done := make(chan error, 2)
		child, ctx := state.forBuild(t.Context(), c)
		require.Equal(t, t.Context(), ctx)
		go func() {
			done <- child.run(t.Context(), "child", struct{}{}, linkedTargetHooks{evaluate: func() error {
				close(evaluated)
				return nil
			}})
		}()
		parent, _ := state.forBuild(t.Context(), c)
		go func() {
			done <- parent.run(t.Context(), "parent", struct{}{}, linkedTargetHooks{evaluate: func() error {
				<-release
				return nil
			}})
		}()
		assertNotSignaled(t, evaluated)
		close(release)
		require.NoError(t, wait(t, done, "they are evaluated one after the other"))
		require.NoError(t, wait(t, done, "they are evaluated one after the other"))
	}
}

// TestLinkedTargetsParentFails cancels the evaluation of the child.
func TestLinkedTargetsParentFails(t *testing.T) {
	cause := errors.New("parent failed")
	run := func(c gateway.Client, evaluate func(context.Context) error) error {
		state := parentAndChild()
		child, ctx := state.forBuild(t.Context(), c)
		started := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			done <- child.run(t.Context(), "child", struct{}{}, linkedTargetHooks{evaluate: func() error {
				close(started)
				return evaluate(ctx)
			}})
		}()
		if evaluate != nil {
			wait(t, started, "its parent is being evaluated")
		}
		state.fail("parent", cause)
		return wait(t, done, "the parent has failed")
	}
	ordered := run(orderedClient, nil)
	require.ErrorIs(t, ordered, cause)
	var canceled error // why the evaluation was canceled
	for name, evaluate := range map[string]func(context.Context) error{
		"canceled": func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				canceled = context.Cause(ctx)
			case <-time.After(hangTimeout / 2):
			}
			return canceled
		},
		"failed before, in the same step": func(context.Context) error { return cause },
		"succeeded before":                func(context.Context) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			err := run(loadingClient, evaluate)
			require.EqualError(t, err, ordered.Error())
			require.ErrorIs(t, err, cause)
			require.ErrorAs(t, err, new(targetAbortError))
		})
	}
	require.ErrorIs(t, canceled, cause)
}

// TestLinkedTargetsChildFails lets the parent succeed after its child has failed.
func TestLinkedTargetsChildFails(t *testing.T) {
	state := parentAndChild()
	cause := errors.New("child failed")
	release := make(chan struct{})
	parentDone, childDone := make(chan error, 1), make(chan error, 1)
	parent, _ := state.forBuild(t.Context(), loadingClient)
	go func() {
		parentDone <- parent.run(t.Context(), "parent", struct{}{}, linkedTargetHooks{evaluate: func() error {
			<-release
			return nil
		}})
	}()
	child, ctx := state.forBuild(t.Context(), loadingClient)
	go func() {
		err := child.run(t.Context(), "child", struct{}{}, linkedTargetHooks{evaluate: func() error { return cause }})
		state.fail("child", err)
		childDone <- err
	}()
	assertNotCompleted(t, childDone)
	close(release)
	require.Equal(t, cause, wait(t, childDone, "the parent has been evaluated"), "as it is, without being aborted")
	require.NoError(t, wait(t, parentDone, "its child has failed"))
	require.NoError(t, context.Cause(ctx))
}

func TestLinkedTargetsUnorderedCanceled(t *testing.T) {
	state := newLinkedTargetState(map[string][]string{"child": {"missing"}}, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("another target failed")
	child, evaluateCtx := state.forBuild(ctx, loadingClient)
	done := make(chan error, 1)
	go func() {
		done <- child.run(ctx, "child", struct{}{}, linkedTargetHooks{evaluate: func() error {
			<-evaluateCtx.Done()
			return errors.New("evaluation canceled")
		}})
	}()
	cancel(cause)
	require.ErrorIs(t, wait(t, done, "it was canceled"), cause)
}

// linkedGraph is a random graph of linked targets, some of which fail.
type linkedGraph struct {
	targets           []string
	parents, children map[string][]string
	fails             map[string]bool
	sync              bool // --jobs mode=defer-output
}

func newLinkedGraph(r *rand.Rand) *linkedGraph {
	g := &linkedGraph{parents: map[string][]string{}, children: map[string][]string{}, fails: map[string]bool{}, sync: r.IntN(2) == 0}
	for i := range 1 + r.IntN(8) {
		key := fmt.Sprintf("t%d", i)
		for _, parent := range g.targets {
			if r.IntN(3) == 0 {
				g.parents[key] = append(g.parents[key], parent)
				g.children[parent] = append(g.children[parent], key)
			}
		}
		g.targets = append(g.targets, key)
		g.fails[key] = r.IntN(6) == 0
	}
	return g
}

// run runs all targets as Build does, except that a failing target does not cancel
// the others. It returns how each target ended and which were exported.
func (g *linkedGraph) run(t *testing.T, r *rand.Rand, c gateway.Client) (errs map[string]string, exported []string) {
	linked := newLinkedTargetState(g.parents, g.children)
	var state *syncTargetState
	if g.sync {
		state = &syncTargetState{targets: g.targets, results: waitmap.New(), evaluated: waitmap.New()}
	}
	var mu sync.Mutex
	errs = map[string]string{}
	steps := map[string]func() error{} // the work of a target, which runs once, whichever target evaluates it
	delays := map[string][2]int{}
	for _, key := range g.targets {
		delays[key] = [2]int{r.IntN(200), r.IntN(200)}
		steps[key] = sync.OnceValue(func() error {
			for _, parent := range g.parents[key] {
				if err := steps[parent](); err != nil {
					return err
				}
			}
			yield(delays[key][0])
			if g.fails[key] {
				return errors.Errorf("%s failed", key)
			}
			return nil
		})
	}
	order := slices.Clone(g.targets)
	r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	var wg sync.WaitGroup
	for _, key := range order {
		wg.Go(func() {
			yield(delays[key][1])
			b, ctx := linked.forBuild(t.Context(), c)
			hooks := linkedTargetHooks{evaluate: func() error {
				if err := steps[key](); err != nil {
					return err
				}
				return context.Cause(ctx)
			}}
			if state != nil {
				hooks.preEvaluate = func() error { return state.waitResult(t.Context(), key, struct{}{}) }
				hooks.postEvaluate = func() error { return state.waitEvaluated(t.Context(), key, struct{}{}) }
			}
			err := b.run(t.Context(), key, struct{}{}, hooks)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				exported = append(exported, key)
				return
			}
			errs[key] = err.Error()
			if state != nil {
				state.fail(key, err)
			}
			linked.fail(key, err)
		})
	}
	wg.Wait()
	slices.Sort(exported)
	return errs, exported
}

func yield(n int) {
	for range n {
		runtime.Gosched()
	}
}

// TestLinkedTargetsRandom compares how the targets of random graphs end when they
// are evaluated in order and when they are not.
func TestLinkedTargetsRandom(t *testing.T) {
	seed := rand.Uint64() //nolint:gosec // of a test
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // of a test
	failed := 0
	for range 2000 {
		g := newLinkedGraph(r)
		errs, exported := g.run(t, r, orderedClient)
		unorderedErrs, unorderedExported := g.run(t, r, loadingClient)
		require.Equal(t, exported, unorderedExported, "%+v", g)
		if !g.sync { // it is random which target aborts which other one
			require.Equal(t, errs, unorderedErrs, "%+v", g)
		}
		if len(errs) > 0 && len(exported) > 0 {
			failed++
		}
	}
	require.Greater(t, failed, 100, "graphs in which some targets failed and others did not")
}
