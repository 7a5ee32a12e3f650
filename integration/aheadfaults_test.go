package integration

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func newAheadBed(t *testing.T, opt testbed.DaemonOptions) *randomBed {
	t.Helper()
	opt.Flavor, opt.Quiet, opt.Env = testbed.Graphload, true, append(opt.Env, aheadEnv...)
	return newRandomBedOn(t, opt)
}

// gate holds steps until it is opened.
type gate struct {
	bed *randomBed
	id  string // in the command line of the steps
}

func (bed *randomBed) gate() gate {
	return gate{bed, identity.NewID()}
}

func (g gate) mount() llb.RunOption {
	return llb.AddMount("/gate", llb.Scratch(), llb.AsPersistentCacheDir(g.id, llb.CacheMountShared))
}

// step returns a step that waits for the gate, and then runs a script.
func (g gate) step(st llb.State, script string, opts ...llb.RunOption) llb.State {
	return sh(st, fmt.Sprintf("until [ -e /gate/%s ]; do sleep 0.02; done; %s", g.id, script), append(opts, g.mount())...)
}

func (g gate) open(t *testing.T) {
	t.Helper()
	require.NoError(t, within(t.Context(), t, func(ctx context.Context) error {
		return peer{name: "gate", locals: g.bed.locals}.run(ctx, g.bed.client, func(ctx context.Context, b peerBuild) error {
			return b.evaluate(ctx, sh(g.bed.root, "echo > /gate/"+g.id, g.mount()))
		})
	}))
}

// running returns the number of steps that wait for the gate.
func (g gate) running(t *testing.T) int {
	t.Helper()
	return len(processesOf(t, "until [ -e /gate/"+g.id))
}

func (g gate) waitRunning(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return g.running(t) > 0 }, hangTimeout, 5*time.Millisecond, "the step does not run")
}

func (g gate) waitGone(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return g.running(t) == 0 }, hangTimeout, 5*time.Millisecond, "the step still runs")
}

// liveBuild is a build of a Go client that stays active until the test ends it.
type liveBuild struct {
	peerBuild
	ctx    context.Context
	cancel context.CancelFunc
	finish context.CancelFunc
	done   chan error
}

func startBuild(t *testing.T, c *client.Client, p peer) *liveBuild {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	finished, finish := context.WithCancel(ctx)
	b := &liveBuild{cancel: cancel, finish: finish, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		b.done <- p.run(ctx, c, func(ctx context.Context, pb peerBuild) error {
			b.peerBuild, b.ctx = pb, ctx
			close(ready)
			<-finished.Done()
			return nil
		})
	}()
	receive(t, ready)
	t.Cleanup(cancel)
	return b
}

func (b *liveBuild) end(t *testing.T) {
	t.Helper()
	b.finish()
	require.NoError(t, receive(t, b.done))
}

func (b *liveBuild) evaluating(ref gateway.Reference) <-chan error {
	done := make(chan error, 1)
	go func() { done <- ref.Evaluate(b.ctx) }()
	return done
}

// waitBuilt waits until all steps of a build are done.
func waitBuilt(t *testing.T, d *testbed.Daemon, ref string) {
	t.Helper()
	require.Eventually(t, func() bool {
		g, err := readGraph(t.Context(), d)
		require.NoError(t, err)
		built := 0
		for _, s := range g.Steps {
			if !slices.Contains(s.Jobs, ref) {
				continue
			}
			if s.Status != "done" && s.Status != "cached" {
				return false
			}
			built++
		}
		return built > 0
	}, hangTimeout, 10*time.Millisecond)
}

// TestAheadFaults ends base or child in every way, at each stage of an evaluation ahead.
// What runs for the ended build is canceled, the other build continues as if nothing had
// run ahead, and nothing is left.
func TestAheadFaults(t *testing.T) {
	bed := newAheadBed(t, testbed.DaemonOptions{})
	bed.requireWorks(t, bed.client)
	require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
	before, err := measure(t.Context(), bed.daemon, bed.client)
	require.NoError(t, err)

	const (
		running  = "while both run"
		baseDone = "when base is done"
		allDone  = "when all is done"
		joined   = "when child's client evaluates"
	)
	before.most = mostGoroutines(t, bed.daemon, func() {
		for _, stage := range []string{running, baseDone, allDone, joined} {
			for _, who := range []string{"base", "child"} {
				for _, how := range []string{"killed", "canceled", "returns"} {
					if how == "returns" && (stage == running && who == "base" || stage == joined && who == "child") {
						continue // upstream's daemon continues an evaluation whose build returns
					}
					t.Run(fmt.Sprintf("%s %s %s", who, how, stage), func(t *testing.T) {
						bed.aheadFault(t, who, how, stage == running, stage == allDone, stage == joined)
					})
				}
			}
		}
	})
	requireIdle(t, bed.daemon, bed.client, before)
}

func (bed *randomBed) aheadFault(t *testing.T, who, how string, baseRuns, allDone, joined bool) {
	gateBase, gateOwn := bed.gate(), bed.gate()
	base := peer{name: "base", ref: identity.NewID(), secrets: map[string]string{"token": "base"}, locals: bed.locals}
	child := peer{name: "child", ref: identity.NewID(), secrets: map[string]string{}, locals: bed.locals}
	baseState := gateBase.step(bed.root, `test "$(cat /run/secrets/token)" = base`, secretFile("token"))
	childState := sh(baseState, "test -e /own/own", llb.AddMount("/own", gateOwn.step(bed.root, "echo > /own")))
	if !baseRuns {
		gateBase.open(t)
	}
	if allDone {
		gateOwn.open(t)
	}

	// base solves and evaluates
	var baseProcess, childProcess *clientProcess
	var baseBuild, childBuild *liveBuild
	var childRef gateway.Reference
	var baseEvaluation, childEvaluation <-chan error
	if who == "base" && how == "killed" {
		baseProcess = startClient(t, processBuild{Addr: bed.daemon.Addr, Name: base.name, Secrets: base.secrets, Locals: base.locals, Definition: marshal(t, baseState), Evaluate: true})
		baseProcess.expect(t, "solved")
		if !baseRuns {
			baseProcess.expect(t, "evaluated")
		}
	} else {
		baseBuild = startBuild(t, bed.client, base)
		ref, err := baseBuild.solve(baseBuild.ctx, baseState)
		require.NoError(t, err)
		baseEvaluation = baseBuild.evaluating(ref)
		if !baseRuns {
			require.NoError(t, receive(t, baseEvaluation))
		}
	}
	if baseRuns {
		gateBase.waitRunning(t)
	}

	// child solves, and joins
	if who == "child" && how == "killed" {
		childProcess = startClient(t, processBuild{Addr: bed.daemon.Addr, Name: child.name, Secrets: child.secrets, Locals: child.locals, Definition: marshal(t, childState), Evaluate: joined})
		childProcess.expect(t, "solved")
	} else {
		childBuild = startBuild(t, bed.client, child)
		var err error
		childRef, err = childBuild.solve(childBuild.ctx, childState)
		require.NoError(t, err)
		if joined {
			childEvaluation = childBuild.evaluating(childRef)
		}
	}
	switch {
	case !allDone:
		gateOwn.waitRunning(t)
	case childBuild != nil:
		waitBuilt(t, bed.daemon, child.ref)
	}

	ended := map[string]*liveBuild{"base": baseBuild, "child": childBuild}[who]
	switch how {
	case "killed":
		p := map[string]*clientProcess{"base": baseProcess, "child": childProcess}[who]
		p.signal(t, syscall.SIGKILL)
	case "canceled":
		ended.cancel()
		require.Error(t, receive(t, ended.done))
	case "returns":
		ended.finish()
		require.NoError(t, receive(t, ended.done))
	}

	if who == "child" {
		gateOwn.waitGone(t)
		if baseRuns {
			require.Equal(t, 1, gateBase.running(t))
			require.Empty(t, baseEvaluation, "base goes on")
			gateBase.open(t)
			require.NoError(t, receive(t, baseEvaluation))
		}
		baseBuild.end(t)
		bed.requireWorks(t, bed.client)
		return
	}
	if joined {
		require.Equal(t, 1, gateOwn.running(t), "the client evaluates the step")
		gateOwn.open(t)
		require.NoError(t, receive(t, childEvaluation))
	} else {
		gateOwn.waitGone(t)
		gateBase.waitGone(t)
		gateBase.open(t)
		gateOwn.open(t)
		err := within(childBuild.ctx, t, childRef.Evaluate)
		if baseRuns {
			require.ErrorContains(t, err, "token", "as if nothing had run: base has ended, so its secret is missing")
		} else {
			require.NoError(t, err)
		}
	}
	childBuild.end(t)
	bed.requireWorks(t, bed.client)
}

// TestAheadFailure lets base or child fail. Base's failure stops the child. The child's
// failure is reported only to its client, when it evaluates.
func TestAheadFailure(t *testing.T) {
	bed := newAheadBed(t, testbed.DaemonOptions{})
	t.Run("of base", func(t *testing.T) {
		gateBase, gateOwn := bed.gate(), bed.gate()
		baseState := gateBase.step(bed.root, "exit 7")
		base := startBuild(t, bed.client, peer{name: "base", locals: bed.locals})
		child := startBuild(t, bed.client, peer{name: "child", locals: bed.locals})
		baseRef, err := base.solve(base.ctx, baseState)
		require.NoError(t, err)
		childRef, err := child.solve(child.ctx, sh(baseState, "true", llb.AddMount("/own", gateOwn.step(bed.root, "true"))))
		require.NoError(t, err)
		require.Zero(t, gateOwn.running(t), "base does not evaluate")
		done := base.evaluating(baseRef)
		gateBase.waitRunning(t)
		gateOwn.waitRunning(t)
		gateBase.open(t)
		require.ErrorContains(t, receive(t, done), "exit code: 7")
		gateOwn.waitGone(t)
		base.end(t)
		gateOwn.open(t)
		require.ErrorContains(t, childRef.Evaluate(child.ctx), "exit code: 7")
		child.end(t)
	})
	t.Run("of child", func(t *testing.T) {
		gateBase := bed.gate()
		// this counts how often the child's step runs
		ran := sh(bed.root, "echo run >> /count/runs; exit 8", llb.AddMount("/count", llb.Scratch(), llb.AsPersistentCacheDir(gateBase.id+"-count", llb.CacheMountShared)))
		baseState := gateBase.step(bed.root, "true")
		base := startBuild(t, bed.client, peer{name: "base", locals: bed.locals})
		childPeer := peer{name: "child", ref: identity.NewID(), locals: bed.locals}
		failed := make(chan struct{})
		status := make(chan *client.SolveStatus)
		childPeer.status = status
		go func() {
			for st := range status {
				for _, v := range st.Vertexes {
					if v.Error != "" && failed != nil {
						close(failed)
						failed = nil
					}
				}
			}
		}()
		seen := failed
		child := startBuild(t, bed.client, childPeer)
		baseRef, err := base.solve(base.ctx, baseState)
		require.NoError(t, err)
		childRef, err := child.solve(child.ctx, sh(baseState, "true", llb.AddMount("/own", ran)))
		require.NoError(t, err)
		done := base.evaluating(baseRef)
		receive(t, seen) // the step is in the progress of the child
		require.Equal(t, 1, gateBase.running(t), "base goes on")
		require.ErrorContains(t, childRef.Evaluate(child.ctx), "exit code: 8")
		require.ErrorContains(t, childRef.Evaluate(child.ctx), "exit code: 8")
		gateBase.open(t)
		require.NoError(t, receive(t, done))
		child.end(t)
		count, err := base.solve(base.ctx, sh(bed.root, "cp /count/runs /runs", llb.AddMount("/count", llb.Scratch(), llb.AsPersistentCacheDir(gateBase.id+"-count", llb.CacheMountShared))))
		require.NoError(t, err)
		runs, err := count.ReadFile(base.ctx, gateway.ReadRequest{Filename: "/runs"})
		require.NoError(t, err)
		require.Equal(t, "run\n", string(runs), "the step runs once")
		base.end(t)
	})
}

// TestAheadProgress lets a child run ahead. Its steps are in its own progress while they
// run, and not in base's. Its history has as many steps as without evaluation ahead.
func TestAheadProgress(t *testing.T) {
	steps := map[string][]int32{}
	for _, mode := range []string{"1", "ahead"} {
		bed := newRandomBedOn(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Quiet: true, Env: []string{"BUILDKIT_GRAPHLOAD=" + mode}})
		events := make(chan string, 1000)
		watch := func(name string) chan *client.SolveStatus {
			ch := make(chan *client.SolveStatus)
			go func() {
				for st := range ch {
					for _, v := range st.Vertexes {
						if v.Started != nil {
							events <- fmt.Sprintf("%s: %s: %t", name, v.Name, v.Completed != nil)
						}
					}
				}
			}()
			return ch
		}
		gateBase, gateOwn := bed.gate(), bed.gate()
		baseState := gateBase.step(bed.root, "true", llb.WithCustomName("step of base"))
		ref := identity.NewID()
		base := startBuild(t, bed.client, peer{name: "base", locals: bed.locals, status: watch("base")})
		child := startBuild(t, bed.client, peer{name: "child", ref: ref, locals: bed.locals, status: watch("child")})
		baseRef, err := base.solve(base.ctx, baseState)
		require.NoError(t, err)
		childRef, err := child.solve(child.ctx, sh(baseState, "true", llb.WithCustomName("step of child"), llb.AddMount("/own", gateOwn.step(bed.root, "true", llb.WithCustomName("own step of child")))))
		require.NoError(t, err)
		done := base.evaluating(baseRef)
		gateBase.waitRunning(t)
		seen := map[string]bool{}
		waitFor := func(event string) {
			for !seen[event] {
				seen[receive(t, events)] = true
			}
		}
		if mode == "ahead" {
			waitFor("child: own step of child: false")
			waitFor("child: step of base: false")
			gateOwn.open(t)
			waitFor("child: own step of child: true")
		}
		waitFor("base: step of base: false")
		gateBase.open(t)
		require.NoError(t, receive(t, done))
		if mode != "ahead" {
			gateOwn.open(t)
		}
		require.NoError(t, childRef.Evaluate(child.ctx))
		waitFor("child: step of child: true")
		require.False(t, seen["base: own step of child: true"])
		child.end(t)
		base.end(t)
		record := historyRecord(t, bed.client, ref)
		steps[mode] = []int32{record.NumCompletedSteps, record.NumTotalSteps, record.NumWarnings}
	}
	require.Equal(t, steps["1"], steps["ahead"])
}

// TestAheadParallelism uses a worker with few slots. The steps of base take no longer
// than without a child that could run ahead.
func TestAheadParallelism(t *testing.T) {
	bed := newAheadBed(t, testbed.DaemonOptions{OCIConfig: "max-parallelism = 1"})
	state := func() llb.State {
		st := bed.root
		for range 5 {
			st = sh(st, "sleep 0.2")
		}
		return st
	}
	evaluate := func(withChild bool) time.Duration {
		base := startBuild(t, bed.client, peer{name: "base", locals: bed.locals})
		st := state()
		baseRef, err := base.solve(base.ctx, st)
		require.NoError(t, err)
		if withChild {
			child := startBuild(t, bed.client, peer{name: "child", locals: bed.locals})
			childRef, err := child.solve(child.ctx, sh(st, "true", llb.AddMount("/own", sh(bed.root, "sleep 2"))))
			require.NoError(t, err)
			defer func() {
				require.NoError(t, childRef.Evaluate(child.ctx))
				child.end(t)
				base.end(t)
			}()
		} else {
			defer base.end(t)
		}
		start := time.Now()
		require.NoError(t, baseRef.Evaluate(base.ctx))
		return time.Since(start)
	}
	evaluate(false)
	var alone, beside []time.Duration
	for range 3 {
		alone, beside = append(alone, evaluate(false)), append(beside, evaluate(true))
	}
	t.Logf("base alone %s, beside a child %s", alone, beside)
	require.Less(t, medianOf(beside), allowance(medianOf(alone), 1.5, time.Second), "base waits for the step of the child")
}

// TestAheadChainsAtOnce builds many chains at once, whose bases evaluate, and checks that
// nothing is left.
func TestAheadChainsAtOnce(t *testing.T) {
	bed := newAheadBed(t, testbed.DaemonOptions{})
	chain := func(ctx context.Context, i int) error {
		base := peer{name: fmt.Sprintf("base %d", i), secrets: map[string]string{"token": fmt.Sprintf("base-%d", i)}, locals: bed.locals}
		child := peer{name: fmt.Sprintf("child %d", i), secrets: map[string]string{"token": fmt.Sprintf("child-%d", i)}, locals: bed.locals}
		baseState := sh(bed.root, "cat /run/secrets/token > /base", secretFile("token"))
		own := sh(bed.root, "cat /run/secrets/token > /own", secretFile("token"))
		childState := baseState.File(llb.Copy(own, "/own", "/own"))
		return base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
			baseRef, err := b.solve(ctx, baseState)
			if err != nil {
				return err
			}
			return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
				childRef, err := b.solve(ctx, childState)
				if err != nil {
					return err
				}
				if err := baseRef.Evaluate(ctx); err != nil {
					return err
				}
				if i%5 == 4 {
					return nil // the client does not evaluate the child
				}
				for file, want := range map[string]string{"/base": base.secrets["token"], "/own": child.secrets["token"]} {
					seen, err := childRef.ReadFile(ctx, gateway.ReadRequest{Filename: file})
					if err == nil && string(seen) != want {
						err = errors.Errorf("chain %d saw %q in %s", i, seen, file)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	chainsAtOnce(t, bed, chain)
}
