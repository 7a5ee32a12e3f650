package integration

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/graphload/graphload/internal/testbed"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var (
	randomSeed    = flag.Uint64("seed", 0, "seed of the random graphs, 0 for a new one")
	randomGraphs  = flag.Int("graphs", 15, "number of random graphs")
	randomOnly    = flag.Int("graph", -1, "run only the random graph of this number")
	randomWorkers = flag.Int("workers", 3, "random graphs that run at once")
)

// opTimeout bounds an operation of a random graph. A longer one counts as hanging.
const opTimeout = 60 * time.Second

// TestRandomGraphs builds random chains in random order, and compares what their steps saw
// with the model. The test draws a failing graph next to the log of the daemon. -seed and
// -graph run it again.
func TestRandomGraphs(t *testing.T) {
	t.Parallel()
	runRandomGraphs(t, newRandomBed(t, subject()), false)
}

// TestRandomGraphsAhead is TestRandomGraphs with evaluation ahead.
func TestRandomGraphsAhead(t *testing.T) {
	t.Parallel()
	runRandomGraphs(t, newAheadBed(t, testbed.DaemonOptions{}), true)
}

func runRandomGraphs(t *testing.T, bed *randomBed, ahead bool) {
	t.Helper()
	seed := *randomSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	graphs := *randomGraphs
	if testing.Short() {
		graphs = min(graphs, 8)
	}
	numbers := make([]int, graphs)
	for i := range numbers {
		numbers[i] = i
	}
	if *randomOnly >= 0 {
		numbers = []int{*randomOnly}
	}
	t.Logf("-seed %d -graphs %d", seed, graphs)

	// later graphs do not use the results of earlier ones
	const batch = 200
	var evaluations, started int
	for numbers := range slices.Chunk(numbers, batch) {
		var mu sync.Mutex
		eg, ctx := errgroup.WithContext(t.Context())
		eg.SetLimit(*randomWorkers)
		for _, n := range numbers {
			eg.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				g := newRandomGraph(seed, n)
				g.ahead = ahead
				r := newRandomRun(bed, g)
				err := r.run(ctx)
				mu.Lock()
				defer mu.Unlock()
				evaluations += r.evaluations
				started += r.model.started
				if err == nil || ctx.Err() != nil {
					return nil
				}
				t.Error(r.failure(err))
				return nil
			})
		}
		require.NoError(t, eg.Wait())
		require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
		t.Logf("%d graphs, %d evaluations, %d results could be evaluated ahead", numbers[len(numbers)-1]+1, evaluations, started)
	}
}

// randomBed is what all random graphs share: a daemon, and the agents that builds
// offer.
type randomBed struct {
	daemon *testbed.Daemon
	client *client.Client
	locals map[string]string
	agents map[string]string // sockets by value
	root   llb.State
}

func newRandomBed(t *testing.T, flavor testbed.Flavor) *randomBed {
	t.Helper()
	// the daemon removes no results by itself: otherwise steps would run again
	return newRandomBedOn(t, testbed.DaemonOptions{Flavor: flavor, Quiet: true})
}

func newRandomBedOn(t *testing.T, opt testbed.DaemonOptions) *randomBed {
	t.Helper()
	d := newDaemon(t, opt)
	bed := newRandomBedWith(t, newClient(t, d))
	bed.daemon = d
	return bed
}

func newRandomBedWith(t *testing.T, c *client.Client) *randomBed {
	t.Helper()
	bed := &randomBed{client: c, agents: map[string]string{}}
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	require.NoError(t, testbed.AddFirstKey(t.Context(), dir))
	bed.locals = map[string]string{"rootfs": dir}
	bed.locals["dockerfile"] = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bed.locals["dockerfile"], "Dockerfile.steps"), []byte("FROM steps\n"), 0o600))
	bed.root = llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	for i := range maxRandomBuilds {
		name := randomOffer("ssh", i)
		a, err := testbed.StartNamedAgent(name)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, a.Close()) })
		bed.agents[name] = a.Socket
	}

	// a build caches the root filesystem, so that it is not sent again. The build
	// returns no result, so nothing is chained on it.
	ready := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- peer{name: "root", locals: bed.locals}.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
			ready <- b.evaluate(ctx, sh(bed.root, "true"))
			<-ctx.Done()
			return nil
		})
	}()
	select {
	case err := <-ready:
		require.NoError(t, err)
	case err := <-done:
		require.NoError(t, err)
	}
	t.Cleanup(func() { cancel(); <-done })
	return bed
}

// randomRun runs one graph.
type randomRun struct {
	bed         *randomBed
	g           *randomGraph
	model       *randomModel
	nonce       string // makes the steps of each run new to the daemon
	evaluations int

	mu     sync.Mutex
	active map[*randomBuild]*activeBuild
	built  map[*randomBuild]map[string]bool // steps in the progress of each build
}

// builtSteps returns the steps that were built for each build so far.
func (r *randomRun) builtSteps() map[*randomBuild][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[*randomBuild][]string{}
	for b, names := range r.built {
		out[b] = slices.Sorted(maps.Keys(names))
	}
	return out
}

// watch records which steps the progress of a build shows.
func (r *randomRun) watch(b *randomBuild) chan *client.SolveStatus {
	ch := make(chan *client.SolveStatus)
	go func() {
		for st := range ch {
			r.mu.Lock()
			for _, v := range st.Vertexes {
				if v.Started == nil {
					continue
				}
				if r.built[b] == nil {
					r.built[b] = map[string]bool{}
				}
				r.built[b][v.Name] = true
			}
			r.mu.Unlock()
		}
	}()
	return ch
}

// activeBuild is a build that a client holds open.
type activeBuild struct {
	peerBuild
	ref    string
	ctx    context.Context
	finish context.CancelFunc // lets the client return
	kill   context.CancelFunc
	done   chan error

	mu   sync.Mutex
	refs map[string]gateway.Reference
}

func newRandomRun(bed *randomBed, g *randomGraph) *randomRun {
	return &randomRun{bed: bed, g: g, model: newRandomModel(g), nonce: identity.NewID(), active: map[*randomBuild]*activeBuild{}, built: map[*randomBuild]map[string]bool{}}
}

// failure returns an error of run with the graph. It also draws the graph into a file in
// the folder that testbed.LogsEnv names.
func (r *randomRun) failure(err error) error {
	dot := r.g.dot(r.model, err.Error())
	err = errors.Errorf("graph %d: %v\n%s", r.g.number, err, dot)
	dir := os.Getenv(testbed.LogsEnv)
	if dir == "" {
		return err
	}
	saveErr := os.MkdirAll(dir, 0o755)
	if saveErr == nil {
		saveErr = os.WriteFile(filepath.Join(dir, fmt.Sprintf("graph-%d-%d.dot", r.g.seed, r.g.number)), []byte(dot), 0o600)
	}
	if saveErr != nil {
		return errors.Errorf("%v\n%v", err, saveErr)
	}
	return err
}

func (r *randomRun) run(ctx context.Context) (retErr error) {
	defer func() {
		for b, a := range r.active {
			a.finish()
			err := r.wait(a)
			if retErr == nil && err != nil {
				retErr = errors.Wrapf(err, "end of %s", b.name)
			}
		}
	}()
	for i, round := range r.g.rounds {
		expected := r.model.start(round)
		results := make([]error, len(round))
		seen := make([]map[*randomStep][]string, len(round))
		var wg sync.WaitGroup
		for n, op := range round {
			wg.Go(func() { seen[n], results[n] = r.do(ctx, op) })
		}
		wg.Wait()
		succeeded := make([]bool, len(round))
		for n, op := range round {
			if op.kind == opEvaluate {
				r.evaluations++
			}
			succeeded[n] = results[n] == nil
			if err := expected[n].check(results[n]); err != nil {
				return errors.Wrapf(err, "round %d: %s", i+1, op)
			}
			if err := r.model.check(seen[n]); err != nil {
				return errors.Wrapf(err, "round %d: %s", i+1, op)
			}
		}
		for b, names := range r.builtSteps() {
			if err := r.model.checkBuilt(b, names); err != nil {
				return errors.Wrapf(err, "round %d", i+1)
			}
		}
		r.model.finish(round, succeeded)
	}
	return nil
}

// check compares the result of an operation with what the model allows.
func (e expectation) check(err error) error {
	switch {
	case err == nil && e.mustFail:
		return errors.Errorf("passed, although no build offers one of %v", e.errors)
	case errors.Is(err, errHangs):
		return err
	case err != nil && e.gone && strings.Contains(err.Error(), "no active session for"):
	case err != nil && !e.mayFail:
		return errors.Wrap(err, "failed, although everything is offered")
	case e.mustFail && strings.Contains(err.Error(), "releasing already released reference"):
		// upstream returns this if a build solves again what has failed in it
	case e.mustFail && !slices.ContainsFunc(e.errors, func(msg string) bool { return strings.Contains(err.Error(), msg) }):
		return errors.Wrapf(err, "expected an error that names one of %v", e.errors)
	}
	return nil
}

// check compares what steps saw with what the model allows.
func (m *randomModel) check(seen map[*randomStep][]string) error {
	for s, values := range seen {
		for i, n := range s.needs {
			if allowed := m.steps[s].seen[i]; !allowed[values[i]] {
				return errors.Errorf("step %s saw %q for %s, expected %s", s.name, values[i], n, strings.Join(sortedKeys(allowed), " or "))
			}
		}
	}
	return nil
}

var errHangs = errors.Errorf("not done within %s", opTimeout)

func (r *randomRun) do(ctx context.Context, op randomOp) (_ map[*randomStep][]string, err error) {
	if op.after > 0 {
		time.Sleep(op.after) // the delay is part of the graph
	}
	switch op.kind {
	case opSolve:
		return nil, r.solve(ctx, op.build)
	case opReturn:
		a, err := r.take(op.build)
		if err != nil {
			return nil, err
		}
		a.finish()
		return nil, r.wait(a)
	case opKill:
		a, err := r.take(op.build)
		if err != nil {
			return nil, err
		}
		a.kill()
		if err := r.wait(a); errors.Is(err, errHangs) {
			return nil, err
		}
		return nil, r.gone(ctx, a)
	default:
		r.mu.Lock()
		a := r.active[op.build]
		r.mu.Unlock()
		if a == nil {
			return nil, errNotActive(op.build)
		}
		return r.evaluate(a, op)
	}
}

func errNotActive(b *randomBuild) error {
	return errors.Errorf("%s has not started, or has ended", b.name)
}

// take removes a build from the active ones.
func (r *randomRun) take(b *randomBuild) (*activeBuild, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.active[b]
	if a == nil {
		return nil, errNotActive(b)
	}
	delete(r.active, b)
	return a, nil
}

// wait returns when the client has returned.
func (r *randomRun) wait(a *activeBuild) error {
	timeout := time.NewTimer(opTimeout)
	defer timeout.Stop()
	select {
	case err := <-a.done:
		a.kill()
		return err
	case <-timeout.C:
		a.kill()
		return errors.WithStack(errHangs)
	}
}

// gone returns when the daemon has ended the build of a client that disconnected without
// notice. The build lasts a little longer than its client, and keeps its failures for that
// time.
func (r *randomRun) gone(ctx context.Context, a *activeBuild) error {
	ctx, cancel := context.WithTimeoutCause(ctx, opTimeout, errHangs)
	defer cancel()
	for {
		if active, err := r.lasts(ctx, a); !active || err != nil {
			return hangs(ctx, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// lasts reports if the daemon still has a build. Upstream's daemon serves no graph, and
// discards a build a moment after its history shows the end.
func (r *randomRun) lasts(ctx context.Context, a *activeBuild) (bool, error) {
	builds, err := r.bed.client.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{ActiveOnly: true, EarlyExit: true, Ref: a.ref})
	if err != nil {
		return false, errors.WithStack(err)
	}
	if _, err := builds.Recv(); !errors.Is(err, io.EOF) {
		return true, errors.WithStack(err)
	}
	if r.bed.daemon.Flavor == testbed.Upstream {
		return false, nil
	}
	g, err := readGraph(ctx, r.bed.daemon)
	if err != nil {
		return false, err
	}
	for _, b := range g.Builds {
		if b.Ref == a.ref && b.Owned+b.Building > 0 {
			return true, nil
		}
	}
	return false, nil
}

func (r *randomRun) solve(ctx context.Context, b *randomBuild) error {
	p := peer{name: b.name, ref: identity.NewID(), locals: r.bed.locals, secrets: map[string]string{}, status: r.watch(b)}
	for id, v := range b.offers {
		if id == "ssh" {
			p.agent = r.bed.agents[v]
		} else {
			p.secrets[id] = v
		}
	}
	a := &activeBuild{ref: p.ref, done: make(chan error, 1), refs: map[string]gateway.Reference{}}
	ctx, a.kill = context.WithCancel(ctx)
	finish, cancel := context.WithCancel(ctx)
	a.finish = cancel
	ready := make(chan struct{})
	go func() {
		a.done <- p.run(ctx, r.bed.client, func(ctx context.Context, pb peerBuild) error {
			a.peerBuild, a.ctx = pb, ctx
			close(ready)
			<-finish.Done()
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-a.done:
		a.kill()
		return errors.Wrap(err, "failed to start")
	}
	r.mu.Lock()
	r.active[b] = a
	r.mu.Unlock()

	ctx, cancelTimeout := context.WithTimeoutCause(a.ctx, opTimeout, errHangs)
	defer cancelTimeout()
	var eg errgroup.Group
	for platform := range b.targets {
		eg.Go(func() error {
			_, err := r.ref(ctx, a, b, platform)
			return err
		})
	}
	return hangs(ctx, eg.Wait())
}

// ref returns the ref of a build for a platform. It solves the platform if there is no
// ref.
func (r *randomRun) ref(ctx context.Context, a *activeBuild, b *randomBuild, platform string) (gateway.Reference, error) {
	a.mu.Lock()
	ref := a.refs[platform]
	a.mu.Unlock()
	if ref != nil {
		return ref, nil
	}
	st := r.state(b, b.targets[platform], map[*randomStep]llb.State{})
	ref, err := a.solveWith(ctx, st, gateway.SolveRequest{Evaluate: b.eager}, b.inputs)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refs[platform] = ref
	return ref, nil
}

// evaluate evaluates and returns what the steps saw.
func (r *randomRun) evaluate(a *activeBuild, op randomOp) (map[*randomStep][]string, error) {
	ctx, cancel := context.WithTimeoutCause(a.ctx, opTimeout, errHangs)
	defer cancel()
	if op.cancel > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, op.cancel, errors.WithStack(context.Canceled))
		defer cancel()
	}
	target := op.build.targets[op.platform]
	ref, err := r.ref(ctx, a, op.build, op.platform)
	if err != nil {
		return nil, hangs(ctx, err)
	}
	switch op.how {
	case "Evaluate":
		err = ref.Evaluate(ctx)
	case "ReadFile":
		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen/" + target.name})
	case "StatFile":
		_, err = ref.StatFile(ctx, gateway.StatRequest{Path: "/seen/" + target.name})
	}
	if err != nil {
		return nil, hangs(ctx, err)
	}
	seen := map[*randomStep][]string{}
	for _, s := range target.closure() {
		dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen/" + s.name})
		if err != nil {
			return seen, hangs(ctx, err)
		}
		seen[s] = strings.Split(strings.TrimSuffix(string(dt), "\n"), "\n")
		if len(seen[s]) != len(s.needs) {
			return nil, errors.Errorf("step %s wrote %q", s.name, dt)
		}
	}
	return seen, nil
}

// hangs reports if an error is a timeout.
func hangs(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errHangs) {
		return errors.WithStack(errHangs)
	}
	return err
}

// state returns the step as in the definitions of viewer. The digest is the same in all
// definitions; caching can differ.
func (r *randomRun) state(viewer *randomBuild, s *randomStep, known map[*randomStep]llb.State) llb.State {
	if st, ok := known[s]; ok {
		return st
	}
	st := r.bed.root
	var script []string
	var opts []llb.RunOption
	if len(s.inputs) > 0 {
		st = r.state(viewer, s.inputs[0], known)
	}
	script = append(script, "mkdir -p /seen")
	for i, in := range s.inputs[min(1, len(s.inputs)):] {
		dir := fmt.Sprintf("/in%d", i)
		opts = append(opts, llb.AddMount(dir, r.state(viewer, in, known), llb.Readonly))
		script = append(script, fmt.Sprintf("cp %s/seen/* /seen/", dir))
	}
	if s.delay > 0 {
		script = append(script, fmt.Sprintf("sleep %.3f", s.delay.Seconds()))
	}
	out := "/seen/" + s.name
	for i, n := range s.needs {
		switch n.kind {
		case secretAsFile:
			path := fmt.Sprintf("/run/secrets/%d", i)
			opts = append(opts, llb.AddSecret(path, secretOptions(n)...))
			script = append(script, fmt.Sprintf("if [ -e %s ]; then cat %s; else printf -- %s; fi >> %s; echo >> %s", path, path, missing, out, out))
		case secretAsEnv:
			env := fmt.Sprintf("SECRET%d", i)
			opts = append(opts, llb.AddSecret(env, append(secretOptions(n), llb.SecretAsEnv(true))...))
			script = append(script, fmt.Sprintf("echo ${%s:-%s} >> %s", env, missing, out))
		case sshAgent:
			var opt []llb.SSHOption
			if n.optional {
				opt = append(opt, llb.SSHOptional)
			}
			opts = append(opts, llb.AddSSHSocket(opt...))
			script = append(script, fmt.Sprintf("if [ -S \"$SSH_AUTH_SOCK\" ]; then firstkey || printf %s; else printf -- %s; fi >> %s; echo >> %s", cutOff, missing, out, out))
		}
	}
	if viewer.ignoresCache(s) {
		opts = append(opts, llb.IgnoreCache)
	}
	opts = append(opts, llb.Platform(platforms.MustParse(s.platform)))
	id := digest.FromString(r.nonce + s.name).Encoded()[:16]
	opts = append(opts, llb.Args([]string{"/bin/sh", "-e", "-c", strings.Join(script, "\n") + "\n# " + id}), llb.Network(llb.NetModeNone), llb.WithCustomName(s.name))
	st = st.Run(opts...).Root()
	known[s] = st
	return st
}

func secretOptions(n need) []llb.SecretOption {
	opts := []llb.SecretOption{llb.SecretID(n.id)}
	if n.optional {
		opts = append(opts, llb.SecretOptional)
	}
	return opts
}
