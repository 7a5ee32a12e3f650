package integration

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/semver"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// faultTimeout bounds what happens after a fault.
const hangTimeout = 3 * time.Minute

// within fails the test when f hangs.
func within(ctx context.Context, t *testing.T, f func(context.Context) error) error {
	t.Helper()
	hangs := errors.New("hangs")
	ctx, cancel := context.WithTimeoutCause(ctx, hangTimeout, hangs)
	defer cancel()
	err := await(t, func() error { return f(ctx) })
	require.NotErrorIs(t, context.Cause(ctx), hangs, "with error %v", err)
	return err
}

// allowance returns how long something may take that is compared with what took that
// time. It is a ratio, so that it holds on a loaded machine, or some time more where a
// ratio of little time says nothing.
func allowance(took time.Duration, ratio float64, more time.Duration) time.Duration {
	return max(time.Duration(ratio*float64(took)), took+more)
}

// receive waits for a channel, but not for ever.
func receive[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(hangTimeout + time.Minute): // within says more, and comes first
		require.FailNow(t, "hangs")
	}
	return v
}

// await waits for a function, with a bound.
func await[T any](t *testing.T, f func() T) T {
	t.Helper()
	ch := make(chan T, 1)
	go func() { ch <- f() }()
	return receive(t, ch)
}

func marshal(t *testing.T, st llb.State) []byte {
	t.Helper()
	def, err := st.Marshal(t.Context(), llb.LocalUniqueID("testbed"))
	require.NoError(t, err)
	dt, err := def.ToPB().Marshal()
	require.NoError(t, err)
	return dt
}

// chain has a step of base that needs a secret of base.
func (bed *randomBed) chain(name, script string) (base peer, child peer, state llb.State) {
	base = peer{name: "base of " + name, secrets: map[string]string{"token": "base"}, locals: bed.locals}
	child = peer{name: "child of " + name, secrets: map[string]string{}, locals: bed.locals}
	return base, child, sh(bed.root, script+`; test "$(cat /run/secrets/token)" = base`, secretFile("token"))
}

// requireWorks builds a chain.
func (bed *randomBed) requireWorks(t *testing.T, c *client.Client) {
	t.Helper()
	base, child, state := bed.chain(t.Name(), "true")
	require.NoError(t, within(t.Context(), t, func(ctx context.Context) error {
		return base.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			if _, err := b.solve(ctx, state); err != nil {
				return err
			}
			return child.run(ctx, c, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
		})
	}))
}

func (bed *randomBed) process(t *testing.T, p peer, state llb.State, evaluate bool) *clientProcess {
	t.Helper()
	return startClient(t, processBuild{
		Addr: bed.daemon.Addr, Name: p.name, Secrets: p.secrets, Locals: p.locals, Definition: marshal(t, state), Evaluate: evaluate,
	})
}

// started is closed when a step prints its first line.
func started(p *peer) <-chan struct{} {
	ch := make(chan struct{})
	status := make(chan *client.SolveStatus)
	p.status = status
	go func() {
		found := false
		for st := range status {
			if !found && len(st.Logs) > 0 {
				found = true
				close(ch)
			}
		}
	}()
	return ch
}

func TestClientFaults(t *testing.T) {
	bed := newRandomBed(t, testbed.Graphload)

	t.Run("client of base killed", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "true")
		p := bed.process(t, base, state, false)
		p.expect(t, "solved")
		p.signal(t, syscall.SIGKILL)
		err := within(t.Context(), t, func(ctx context.Context) error {
			return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
		})
		require.ErrorContains(t, err, "token")
		bed.requireWorks(t, bed.client)
	})

	t.Run("client of base killed in a step", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "echo started; sleep 2")
		p := bed.process(t, base, state, false)
		p.expect(t, "solved")
		ch := started(&child)
		done := make(chan error, 1)
		go func() {
			done <- child.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
		}()
		receive(t, ch)
		p.signal(t, syscall.SIGKILL)
		// the secret is mounted when the step starts
		require.NoError(t, within(t.Context(), t, func(context.Context) error { return <-done }))
		bed.requireWorks(t, bed.client)
	})

	t.Run("client of child killed in a step", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "echo started; sleep 2")
		ch := started(&base)
		require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, state)
			if err != nil {
				return err
			}
			p := bed.process(t, child, sh(state, "true"), true)
			p.expect(t, "solved")
			var eg errgroup.Group
			eg.Go(func() error { return ref.Evaluate(ctx) })
			receive(t, ch)
			p.signal(t, syscall.SIGKILL)
			return within(ctx, t, func(context.Context) error { return eg.Wait() })
		}))
		bed.requireWorks(t, bed.client)
	})

	t.Run("client of base stopped", func(t *testing.T) {
		if testing.Short() {
			t.Skip("waits for a health check")
		}
		base, child, _ := bed.chain(t.Name(), "true")
		child.secrets["token"] = "child"
		state := sh(bed.root, "cat /run/secrets/token > /seen", secretFile("token"))
		p := bed.process(t, base, state, false)
		p.expect(t, "solved")
		p.signal(t, syscall.SIGSTOP)
		start := time.Now()
		require.NoError(t, child.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, sh(state, "true"))
			if err != nil {
				return err
			}
			seen, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen"})
			require.NoError(t, err)
			require.Equal(t, "child", string(seen))
			return nil
		}))
		require.Less(t, time.Since(start), time.Minute)
		p.signal(t, syscall.SIGCONT)
		bed.requireWorks(t, bed.client)
		// the client continues, but its build has lost its session and ends
		t.Logf("client of base: %s", p.end(t))
	})

	t.Run("connection of base cut", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "true")
		proxy := newProxy(t, strings.TrimPrefix(bed.daemon.Addr, "unix://"))
		c, err := client.New(t.Context(), "unix://"+proxy.addr)
		require.NoError(t, err)
		defer c.Close()
		baseErr := base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
			if _, err := b.solve(ctx, state); err != nil {
				return err
			}
			proxy.cut()
			err := within(t.Context(), t, func(ctx context.Context) error {
				return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
			})
			require.ErrorContains(t, err, "token")
			return nil
		})
		require.Error(t, baseErr)
		bed.requireWorks(t, bed.client)
	})

	t.Run("child canceled in a step", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "echo started; sleep 2")
		ch := started(&child)
		require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, state)
			if err != nil {
				return err
			}
			childCtx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				<-ch
				cancel()
			}()
			require.Error(t, within(childCtx, t, func(ctx context.Context) error {
				return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
			}))
			return within(ctx, t, func(ctx context.Context) error { return ref.Evaluate(ctx) })
		}))
	})

	t.Run("solve canceled", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "true")
		require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			outcomes := map[bool]int{}
			for range 100 {
				// without a local source, Solve only loads
				st := llb.Scratch()
				for range 10 {
					st = st.File(llb.Mkdir("/"+identity.NewID(), 0o755))
				}
				canceled, cancel := context.WithCancel(ctx)
				timer := time.AfterFunc(rand.N(2*time.Millisecond), cancel)
				_, err := b.solve(canceled, st)
				timer.Stop()
				cancel()
				if err != nil {
					require.ErrorContains(t, err, context.Canceled.Error())
				}
				outcomes[err == nil]++
				// in either case, the next build works
				ref, err := b.solve(ctx, st)
				require.NoError(t, err)
				require.NoError(t, within(ctx, t, ref.Evaluate))
			}
			t.Logf("%d solved, %d canceled", outcomes[true], outcomes[false])
			require.NotZero(t, outcomes[false])
			ref, err := b.solve(ctx, state)
			if err != nil {
				return err
			}
			if err := child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) }); err != nil {
				return err
			}
			return ref.Evaluate(ctx)
		}))
	})

	t.Run("load canceled", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "true")
		// while the policy is asked, the definition is being loaded
		asked := make(chan struct{}, 1)
		answer := make(chan struct{})
		base.policy = policysession.NewPolicyProvider(func(ctx context.Context, _ *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
			select {
			case asked <- struct{}{}:
			default:
			}
			select {
			case <-answer:
				return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		})
		require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			canceled, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				<-asked
				cancel()
			}()
			err := within(canceled, t, func(ctx context.Context) error {
				_, err := b.solve(ctx, state)
				return err
			})
			require.ErrorContains(t, err, context.Canceled.Error())
			close(answer)
			ref, err := b.solve(ctx, state)
			if err != nil {
				return err
			}
			if err := within(ctx, t, func(ctx context.Context) error {
				return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
			}); err != nil {
				return err
			}
			return ref.Evaluate(ctx)
		}))
	})

	t.Run("export canceled", func(t *testing.T) {
		base, child, state := bed.chain(t.Name(), "true")
		require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, state)
			if err != nil {
				return err
			}
			require.Error(t, within(ctx, t, func(ctx context.Context) error {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				return child.export(ctx, bed.client, sh(state, "true"), cancelWriter(cancel))
			}))
			return within(ctx, t, func(ctx context.Context) error { return ref.Evaluate(ctx) })
		}))
		bed.requireWorks(t, bed.client)
	})
}

// cancelWriter calls a function when something is written.
type cancelWriter func()

func (w cancelWriter) Write(dt []byte) (int, error) {
	w()
	return len(dt), nil
}

func (w cancelWriter) Close() error {
	return nil
}

// export evaluates a state by exporting it.
func (p peer) export(ctx context.Context, c *client.Client, st llb.State, w io.WriteCloser) error {
	opt, err := p.options()
	if err != nil {
		return err
	}
	opt.Exports = []client.ExportEntry{{
		Type:   client.ExporterTar,
		Output: func(map[string]string) (io.WriteCloser, error) { return w, nil },
	}}
	_, err = c.Build(ctx, opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		def, err := st.Marshal(ctx, llb.LocalUniqueID("testbed"))
		if err != nil {
			return nil, err
		}
		return gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	}, nil)
	return errors.Wrapf(err, "export of %s", p.name)
}

// TestDaemonFaults ends the daemon in the middle of a chain, and builds another chain on
// the same root.
func TestDaemonFaults(t *testing.T) {
	t.Parallel()
	for sig, script := range map[syscall.Signal]string{
		// the daemon lets running steps end
		syscall.SIGTERM: "echo started; sleep 1",
		syscall.SIGKILL: "echo started; sleep 100",
	} {
		t.Run(sig.String(), func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			rootfs := t.TempDir()
			require.NoError(t, testbed.WriteRootfs(rootfs))
			bed := &randomBed{
				locals: map[string]string{"rootfs": rootfs},
				root:   llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/")),
			}
			for range 2 {
				bed.daemon = newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Root: root})
				c := newClient(t, bed.daemon)
				bed.requireWorks(t, c)

				base, child, state := bed.chain(t.Name(), script)
				ch := started(&child)
				told := make(chan error, 1)
				go func() {
					told <- base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
						if _, err := b.solve(ctx, state); err != nil {
							return err
						}
						go func() {
							<-ch
							bed.daemon.Signal(sig) //nolint:errcheck // the test fails when the daemon does not end
						}()
						return child.run(ctx, c, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) })
					})
				}()
				// the error that clients get depends on their next request, and the
				// daemon does not end before they have given up
				if err := receive(t, told); sig == syscall.SIGKILL {
					require.Error(t, err)
				}
				select {
				case <-bed.daemon.Done():
				case <-time.After(hangTimeout):
					require.Fail(t, "the daemon did not end")
				}
				require.NoError(t, bed.daemon.Stop())
			}
			bed.daemon = newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Root: root})
			bed.requireWorks(t, newClient(t, bed.daemon))
		})
	}
}

// TestDiskFull fills the disk of the daemon with a step of base that its child evaluates.
// Only that step fails.
func TestDiskFull(t *testing.T) {
	requireTestbed(t)
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"))
	testbed.OnAbort(func() error { return unix.Unmount(dir, 0) })
	// cleanups run in reverse order: the daemon ends first
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	bin, err := testbed.Binary(testbed.Upstream, "buildkitd")
	require.NoError(t, err)
	version := versionOf(t, bin)[2]
	errs := map[testbed.Flavor]string{}
	var loses bool // upstream before v0.34.0 loses the snapshot of the step's root
	for _, flavor := range testbed.Flavors {
		bed := newRandomBedOn(t, testbed.DaemonOptions{Flavor: flavor, Root: filepath.Join(dir, string(flavor))})
		// without the secret, which upstream would not find
		state := bed.root.Run(llb.Args([]string{"/bin/sh", "-c", "cat /dev/zero > /big"}), llb.Network(llb.NetModeNone)).Root()
		base, child, _ := bed.chain(t.Name(), "")
		err := within(t.Context(), t, func(ctx context.Context) error {
			return base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, state)
				if err != nil {
					return err
				}
				err = child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, state) })
				require.Error(t, ref.Evaluate(ctx))
				return err
			})
		})
		require.ErrorContains(t, err, "exit code: 1")
		errs[flavor] = err.Error()
		require.Eventually(t, func() bool {
			require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
			var st unix.Statfs_t
			return unix.Statfs(dir, &st) == nil && st.Bavail > st.Blocks/2
		}, hangTimeout, 100*time.Millisecond, "the failed step still fills the disk")
		next := within(t.Context(), t, func(ctx context.Context) error {
			return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(bed.root, "true")) })
		})
		if flavor == testbed.Upstream {
			loses = next != nil
			require.False(t, loses && semver.Compare(version, "v0.34.0") >= 0, "%v", next)
		} else if !loses {
			require.NoError(t, next)
			bed.requireWorks(t, bed.client)
		}
	}
	require.Equal(t, errs[testbed.Upstream], errs[testbed.Graphload])
}

// refusal is a definition that a daemon refuses to load or build.
type refusal struct {
	name   string
	def    func(t *testing.T, bed *randomBed) *pb.Definition
	policy *spb.Policy
	large  bool // skipped with -short
	// chained returns a definition of another build on it, whose error is compared too
	chained func(*randomBed) llb.State
}

func definition(state func(*randomBed) llb.State, change func(*pb.Definition)) func(*testing.T, *randomBed) *pb.Definition {
	return func(t *testing.T, bed *randomBed) *pb.Definition {
		def, err := state(bed).Marshal(t.Context(), llb.LocalUniqueID("testbed"))
		require.NoError(t, err)
		out := def.ToPB()
		if change != nil {
			change(out)
		}
		return out
	}
}

// changeOp changes the nth op from the end, but not the ops that refer to it.
func changeOp(n int, change func(*pb.Op)) func(*pb.Definition) {
	return func(def *pb.Definition) {
		var op pb.Op
		i := len(def.Def) - 1 - n
		if err := op.Unmarshal(def.Def[i]); err != nil {
			panic(err)
		}
		change(&op)
		dt, err := op.Marshal()
		if err != nil {
			panic(err)
		}
		def.Def[i] = dt
	}
}

// terminal is the index of the last op of a definition, from the end. It only points at
// the result; the op before it is the step.
const terminal, step = 0, 1

func refusals() []refusal {
	simple := func(bed *randomBed) llb.State {
		return bed.root.Run(llb.Args([]string{"/bin/true"}), llb.Network(llb.NetModeNone)).Root()
	}
	redirect := func(change func(*pb.Op)) func(*pb.Definition) {
		return func(def *pb.Definition) {
			changeOp(step, change)(def)
			changeOp(terminal, func(op *pb.Op) { op.Inputs[0].Digest = digestOf(def.Def[len(def.Def)-2]) })(def)
		}
	}
	insecure := func(bed *randomBed) llb.State {
		return bed.root.Run(llb.Args([]string{"/bin/true"}), llb.Security(llb.SecurityModeInsecure)).Root()
	}
	hostNetwork := func(bed *randomBed) llb.State {
		return bed.root.Run(llb.Args([]string{"/bin/true"}), llb.Network(llb.NetModeHost)).Root()
	}
	return []refusal{
		{name: "no ops", def: definition(simple, func(def *pb.Definition) { def.Def = nil })},
		{name: "only a terminal", def: definition(simple, func(def *pb.Definition) { def.Def = def.Def[len(def.Def)-1:] })},
		{name: "missing input", def: definition(simple, func(def *pb.Definition) { def.Def = def.Def[1:] })},
		{name: "changed op", def: definition(simple, changeOp(step, func(op *pb.Op) { op.GetExec().Meta.Cwd = "/tmp" }))},
		{name: "terminal with a bad index", def: definition(simple, changeOp(terminal, func(op *pb.Op) { op.Inputs[0].Index = 99 }))},
		{name: "terminal with a negative index", def: definition(simple, changeOp(terminal, func(op *pb.Op) { op.Inputs[0].Index = -7 }))},
		{name: "terminal with a bad digest", def: definition(simple, changeOp(terminal, func(op *pb.Op) { op.Inputs[0].Digest = "sha256:x" }))},
		{name: "input with a bad index", def: definition(simple, redirect(func(op *pb.Op) { op.Inputs[0].Index = 99 }))},
		{name: "mount with a bad input", def: definition(simple, redirect(func(op *pb.Op) { op.GetExec().Mounts[0].Input = 99 }))},
		{name: "mount with a bad output", def: definition(simple, redirect(func(op *pb.Op) { op.GetExec().Mounts[0].Output = 99 }))},
		{name: "no mounts", def: definition(simple, redirect(func(op *pb.Op) { op.GetExec().Mounts = nil }))},
		{name: "no meta", def: definition(simple, redirect(func(op *pb.Op) { op.GetExec().Meta = nil }))},
		{name: "no op", def: definition(simple, redirect(func(op *pb.Op) { op.Op = nil }))},
		{name: "garbage", def: definition(simple, func(def *pb.Definition) { def.Def[0] = []byte(strings.Repeat("\xff", 100)) })},
		{name: "unknown source", def: definition(simple, func(def *pb.Definition) {
			changeOp(step, func(op *pb.Op) {
				op.Op = &pb.Op_Source{Source: &pb.SourceOp{Identifier: "nothing://x"}}
				op.Inputs = nil
			})(def)
			changeOp(terminal, func(op *pb.Op) { op.Inputs[0].Digest = digestOf(def.Def[len(def.Def)-2]) })(def)
		})},
		{name: "op that is its own input", def: definition(simple, changeOp(step, func(op *pb.Op) {
			dt, err := op.Marshal()
			if err != nil {
				panic(err)
			}
			op.Inputs[0].Digest = digestOf(dt) // the digest before the change: an op cannot contain its own digest
		}))},
		{name: "insecure step", def: definition(insecure, nil), chained: insecure},
		{name: "host network", def: definition(hostNetwork, nil), chained: hostNetwork},
		{
			name: "denied by policy", def: definition(simple, nil), chained: simple,
			policy: &spb.Policy{Rules: []*spb.Rule{{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{Identifier: "local://rootfs"}}}},
		},
		{name: "huge name", def: definition(func(bed *randomBed) llb.State {
			return bed.root.Run(llb.Args([]string{"/bin/true"}), llb.WithCustomName(strings.Repeat("name", 100_000))).Root()
		}, nil)},
		{name: "huge source", def: definition(func(*randomBed) llb.State { return llb.Local(strings.Repeat("name", 10_000)) }, nil)},
		{name: "huge secret", def: definition(func(bed *randomBed) llb.State {
			return bed.root.Run(llb.Args([]string{"/bin/true"}), secretFile(strings.Repeat("name", 10_000))).Root()
		}, nil)},
		{name: "100,000 vertices", large: true, def: definition(func(*randomBed) llb.State {
			var all []llb.State
			for i := range 50_000 {
				st := llb.Scratch().File(llb.Mkdir("/"+strconv.Itoa(i), 0o755))
				all = append(all, st)
			}
			for len(all) > 1 {
				var next []llb.State
				for len(all) > 0 {
					n := min(2, len(all))
					next = append(next, llb.Merge(all[:n]))
					all = all[n:]
				}
				all = next
			}
			return all[0].File(llb.Copy(llb.Scratch(), "/nothing", "/"))
		}, func(def *pb.Definition) {
			if len(def.Def) < 100_000 {
				panic(fmt.Sprintf("only %d vertices", len(def.Def)))
			}
			def.Metadata, def.Source = nil, nil // with them, the definition is too large to be sent
		})},
	}
}

// TestRefusals solves definitions that cannot be loaded or built. A lazy solve succeeds,
// and the evaluation returns the error of upstream's daemon.
func TestRefusals(t *testing.T) {
	requireTestbed(t)
	results := map[testbed.Flavor]map[string]string{}
	for _, flavor := range testbed.Flavors {
		results[flavor] = map[string]string{}
		t.Run(string(flavor), func(t *testing.T) {
			bed := newRandomBed(t, flavor)
			for _, r := range refusals() {
				if r.large && testing.Short() {
					continue
				}
				p := peer{name: r.name, locals: bed.locals}
				def := r.def(t, bed)
				chained := ""
				err := within(t.Context(), t, func(ctx context.Context) error {
					return p.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
						req := gateway.SolveRequest{Definition: def}
						if r.policy != nil {
							req.SourcePolicies = []*spb.Policy{r.policy}
						}
						res, err := b.Solve(ctx, req)
						if err != nil {
							return errors.Wrap(err, "lazy solve")
						}
						ref, err := res.SingleRef()
						if err != nil || ref == nil {
							return err
						}
						if r.chained != nil {
							child := peer{name: "child", locals: bed.locals}
							chained = fmt.Sprint(child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
								return b.evaluate(ctx, r.chained(bed).File(llb.Mkdir("/chained", 0o755)))
							}))
						}
						if r.large { // do not build all of it
							ctx, cancel := context.WithCancel(ctx)
							defer time.AfterFunc(2*time.Second, cancel).Stop()
							if err := ref.Evaluate(ctx); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
								return errors.Errorf("evaluated without being canceled: %v", err)
							}
							return nil
						}
						return errors.Wrap(ref.Evaluate(ctx), "evaluation")
					})
				})
				results[flavor][r.name] = "no error"
				if err != nil {
					// the number of spaces in a message differs between binaries
					results[flavor][r.name] = strings.Join(strings.Fields(err.Error()), " ")
				}
				if r.chained != nil {
					require.NotEmpty(t, chained)
					results[flavor][r.name] += "; " + chained
				}
				if flavor == testbed.Graphload {
					bed.requireWorks(t, bed.client)
				}
				base, _, state := bed.chain(r.name, "true")
				require.NoError(t, within(t.Context(), t, func(ctx context.Context) error {
					return base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, state) })
				}))
			}
		})
	}
	for _, r := range refusals() {
		t.Run(r.name, func(t *testing.T) {
			t.Logf("%.200s", results[testbed.Upstream][r.name])
			require.Equal(t, results[testbed.Upstream][r.name], results[testbed.Graphload][r.name])
		})
	}
}

func digestOf(dt []byte) string {
	return digest.FromBytes(dt).String()
}
