package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// peer is a build of a Go client with its own session.
type peer struct {
	name    string
	ref     string // ref of the build; if empty, the client chooses one
	secrets map[string]string
	agent   string // socket of an SSH agent
	docker  string // folder with the configuration of a docker CLI
	locals  map[string]string
	attach  []session.Attachable
	policy  session.Attachable // if not nil, asked for each source
	status  chan *client.SolveStatus
}

// peerBuild is what a peer can do while it is active.
type peerBuild struct {
	gateway.Client
}

// run runs f as a build of the peer and returns when the build has ended.
func (p peer) run(ctx context.Context, c *client.Client, f func(context.Context, peerBuild) error) error {
	opt, err := p.options()
	if err != nil {
		return err
	}
	_, err = c.Build(ctx, opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		return gateway.NewResult(), f(ctx, peerBuild{gc})
	}, p.status)
	return errors.Wrapf(err, "build of %s", p.name)
}

// options are the session of the peer.
func (p peer) options() (client.SolveOpt, error) {
	opt := client.SolveOpt{Ref: p.ref, LocalMounts: map[string]fsutil.FS{}, Session: slices.Clone(p.attach), SourcePolicyProvider: p.policy}
	secrets := map[string][]byte{}
	for id, v := range p.secrets {
		secrets[id] = []byte(v)
	}
	if p.secrets != nil {
		opt.Session = append(opt.Session, secretsprovider.FromMap(secrets))
	}
	if p.agent != "" {
		ssh, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{Paths: []string{p.agent}}})
		if err != nil {
			return opt, err
		}
		opt.Session = append(opt.Session, ssh)
	}
	if p.docker != "" {
		logins, err := testbed.AuthProvider(p.docker)
		if err != nil {
			return opt, err
		}
		opt.Session = append(opt.Session, logins)
	}
	for name, dir := range p.locals {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return opt, err
		}
		opt.LocalMounts[name] = fs
	}
	return opt, nil
}

// solve solves a state lazily.
func (b peerBuild) solve(ctx context.Context, st llb.State) (gateway.Reference, error) {
	return b.solveWith(ctx, st, gateway.SolveRequest{}, false)
}

// solveWith solves a state, or a Dockerfile that has the state as its context "steps", as
// bake does if a target is a context of another one.
func (b peerBuild) solveWith(ctx context.Context, st llb.State, req gateway.SolveRequest, input bool) (gateway.Reference, error) {
	// by default, local sources of different sessions differ; here they are the same
	def, err := st.Marshal(ctx, llb.LocalUniqueID("testbed"))
	if err != nil {
		return nil, err
	}
	if input {
		req.Frontend = "dockerfile.v0"
		req.FrontendInputs = map[string]*pb.Definition{"steps": def.ToPB()}
		req.FrontendOpt = map[string]string{"context:steps": "input:steps", "filename": "Dockerfile.steps"}
	} else {
		req.Definition = def.ToPB()
	}
	res, err := b.Solve(ctx, req)
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// evaluate solves a state and evaluates it.
func (b peerBuild) evaluate(ctx context.Context, st llb.State) error {
	ref, err := b.solve(ctx, st)
	if err != nil {
		return err
	}
	return ref.Evaluate(ctx)
}

func sh(st llb.State, script string, opts ...llb.RunOption) llb.State {
	args := llb.Args([]string{"/bin/sh", "-c", script + " # " + identity.NewID()})
	return st.Run(append([]llb.RunOption{args, llb.Network(llb.NetModeNone)}, opts...)...).Root()
}

func secretFile(id string, opts ...llb.SecretOption) llb.RunOption {
	return llb.AddSecret("/run/secrets/"+id, append([]llb.SecretOption{llb.SecretID(id)}, opts...)...)
}

// TestChildFirst uses a step of base that needs something that only base's session has. A
// child with its own session evaluates it first.
func TestChildFirst(t *testing.T) {
	testChildFirst(t, serveDaemon)
}

func testChildFirst(t *testing.T, serve serveFunc) {
	c := serve(t, subject()).client(t)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	bed := &randomBed{ // with no other build
		client: c,
		locals: map[string]string{"rootfs": dir},
		root:   llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/")),
	}
	inEnvironment := func(name string, opts ...llb.SecretOption) owned {
		opts = append(opts, llb.SecretID("token"), llb.SecretAsEnv(true))
		return owned{
			name: name, base: peer{secrets: map[string]string{"token": "base"}, locals: bed.locals},
			state: sh(bed.root, `test "$TOKEN" = base`, llb.AddSecret("TOKEN", opts...)),
		}
	}
	for _, tc := range append(bed.owned(t), inEnvironment("secret in the environment"), inEnvironment("optional secret in the environment", llb.SecretOptional)) {
		t.Run(tc.name, func(t *testing.T) {
			tc.base.name = "base"
			child := peer{name: "child", locals: bed.locals, secrets: map[string]string{"other": "x"}}
			err := tc.base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, tc.state)
				if err != nil {
					return err
				}
				if err := child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
					return b.evaluate(ctx, sh(tc.state, "true"))
				}); err != nil {
					return err
				}
				return ref.Evaluate(ctx)
			})
			require.NoError(t, err)
		})
	}
}

// TestOrders evaluates chains of three builds in every order and at the same time.
func TestOrders(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: subject()})
	c := newClient(t, d)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))

	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}, {2}, {1}, {2, 0}, nil} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			// all builds have the same secret id with different values
			states := make([]llb.State, 3)
			st := root
			for i := range states {
				st = sh(st, fmt.Sprintf(`test "$(cat /run/secrets/token)" = value%d`, i), secretFile("token"))
				states[i] = st
			}
			refs := make([]gateway.Reference, len(states))
			var nest func(ctx context.Context, i int) error
			nest = func(ctx context.Context, i int) error {
				if i == len(states) {
					if order == nil {
						eg, ctx := errgroup.WithContext(ctx)
						for _, ref := range refs {
							eg.Go(func() error { return ref.Evaluate(ctx) })
						}
						return eg.Wait()
					}
					for _, n := range order {
						if err := refs[n].Evaluate(ctx); err != nil {
							return errors.Wrapf(err, "evaluation of %d", n)
						}
					}
					return nil
				}
				p := peer{name: fmt.Sprint(i), secrets: map[string]string{"token": fmt.Sprintf("value%d", i)}, locals: locals}
				return p.run(ctx, c, func(ctx context.Context, b peerBuild) (err error) {
					if refs[i], err = b.solve(ctx, states[i]); err != nil {
						return err
					}
					return nest(ctx, i+1)
				})
			}
			require.NoError(t, nest(t.Context(), 0))
		})
	}
}

// TestEvaluatedBy lets a child evaluate a step of base in every way that a client has,
// while base never evaluates it.
func TestEvaluatedBy(t *testing.T) {
	bed := newRandomBed(t, subject())
	read := func(f func(context.Context, gateway.Reference) (string, error)) func(context.Context, peer, llb.State) (string, error) {
		return func(ctx context.Context, p peer, st llb.State) (seen string, err error) {
			err = p.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, st)
				if err != nil {
					return err
				}
				seen, err = f(ctx, ref)
				return err
			})
			return seen, err
		}
	}
	// the secret is the name and the content of the file that the step writes
	for name, evaluate := range map[string]func(context.Context, peer, llb.State) (string, error){
		"ReadFile": read(func(ctx context.Context, ref gateway.Reference) (string, error) {
			dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen/base"})
			return string(dt), err
		}),
		"ReadDir": read(func(ctx context.Context, ref gateway.Reference) (string, error) {
			files, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/seen"})
			if err != nil || len(files) != 1 {
				return "", errors.Errorf("%d files, error %v", len(files), err)
			}
			return files[0].Path, nil
		}),
		"StatFile": read(func(ctx context.Context, ref gateway.Reference) (string, error) {
			st, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/seen/base"})
			if err != nil {
				return "", err
			}
			return st.Path, nil
		}),
		"Evaluate": read(func(ctx context.Context, ref gateway.Reference) (string, error) {
			if err := ref.Evaluate(ctx); err != nil {
				return "", err
			}
			// the file has been written by now
			dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen/base"})
			return string(dt), err
		}),
		"NewContainer": func(ctx context.Context, p peer, st llb.State) (string, error) {
			var out bytes.Buffer
			err := p.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, st)
				if err != nil {
					return err
				}
				ctr, err := b.NewContainer(ctx, gateway.NewContainerRequest{
					NetMode: llb.NetModeNone,
					Mounts:  []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: ref}},
				})
				if err != nil {
					return err
				}
				defer ctr.Release(ctx) //nolint:errcheck // released at the end of the build
				proc, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/bin/cat", "/seen/base"}, Stdout: &writeCloser{&out}})
				if err != nil {
					return err
				}
				return proc.Wait()
			})
			return out.String(), err
		},
		"export": func(ctx context.Context, p peer, st llb.State) (string, error) {
			var out bytes.Buffer
			if err := p.export(ctx, bed.client, st, &writeCloser{&out}); err != nil {
				return "", err
			}
			for tr := tar.NewReader(&out); ; {
				hdr, err := tr.Next()
				if err != nil {
					return "", err
				}
				if hdr.Name == "seen/base" {
					dt, err := io.ReadAll(tr)
					return string(dt), err
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			state := sh(bed.root, `mkdir /seen; cat /run/secrets/token > "/seen/$(cat /run/secrets/token)"`, secretFile("token"))
			base := peer{name: "base", secrets: map[string]string{"token": "base"}, locals: bed.locals}
			child := peer{name: "child", secrets: map[string]string{"token": "child"}, locals: bed.locals}
			require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, state); err != nil {
					return err
				}
				seen, err := evaluate(ctx, child, sh(state, "true"))
				require.Equal(t, "base", seen)
				return err
			}))
		})
	}
}

type writeCloser struct{ io.Writer }

func (writeCloser) Close() error {
	return nil
}

// TestIsolation lets builds chain on base, and try to use what base offers in their own
// steps.
func TestIsolation(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: subject()})
	c := newClient(t, d)
	dir, private := t.TempDir(), t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	agent, err := testbed.StartSSHAgent(t.Context(), "testbed")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, agent.Close()) })

	base := peer{
		name: "base", secrets: map[string]string{"token": "base"}, agent: agent.Socket,
		locals: map[string]string{"rootfs": dir, "private": private},
	}
	state := sh(root, `test "$(cat /run/secrets/token)" = base`, secretFile("token"), llb.AddSSHSocket(), llb.AddMount("/src", llb.Local("private")))
	thief := peer{name: "thief", locals: locals}
	for name, tc := range map[string]struct {
		step llb.State
		err  string
	}{
		"secret": {sh(state, "true", secretFile("token")), "secret token: not found"},
		"agent":  {sh(state, "true", llb.AddSSHSocket()), "no SSH key"},
		"local":  {sh(state, "true", llb.AddMount("/src", llb.Local("private", llb.IncludePatterns([]string{"*"})))), "private"},
		// optional needs are absent
		"optional secret": {sh(state, "test -e /run/secrets/token", secretFile("token", llb.SecretOptional)), "exit code: 1"},
		"optional agent":  {sh(state, `test -S "$SSH_AUTH_SOCK"`, llb.AddSSHSocket(llb.SSHOptional)), "exit code: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, state); err != nil {
					return err
				}
				return thief.run(ctx, c, func(ctx context.Context, b peerBuild) error {
					// base's step does not fail
					if err := b.evaluate(ctx, sh(state, "true")); err != nil {
						return err
					}
					require.ErrorContains(t, b.evaluate(ctx, tc.step), tc.err)
					return nil
				})
			}))
		})
	}
}

// owned has a step that needs something, and the peer that has it.
type owned struct {
	name  string
	base  peer
	state llb.State
	err   string // error of a build if neither it nor a base has it
}

// owned returns needs that only the session of base can serve, with new steps.
func (bed *randomBed) owned(t *testing.T) []owned {
	t.Helper()
	agent, err := testbed.StartSSHAgent(t.Context(), "testbed")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, agent.Close()) })
	private := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(private, "note"), []byte("from base"), 0o600))
	secret, withAgent := peer{secrets: map[string]string{"token": "base"}, locals: bed.locals}, peer{agent: agent.Socket, locals: bed.locals}
	const readSecret, findAgent = `test "$(cat /run/secrets/token)" = base`, `test -S "$SSH_AUTH_SOCK"`
	return []owned{
		{name: "secret file", base: secret, state: sh(bed.root, readSecret, secretFile("token")), err: "secret token: not found"},
		{name: "optional secret file", base: secret, state: sh(bed.root, readSecret, secretFile("token", llb.SecretOptional)), err: "exit code: 1"},
		{name: "agent", base: withAgent, state: sh(bed.root, findAgent, llb.AddSSHSocket(llb.SSHID("default"))), err: `no SSH key "default" forwarded`},
		{name: "optional agent", base: withAgent, state: sh(bed.root, findAgent, llb.AddSSHSocket(llb.SSHID("default"), llb.SSHOptional)), err: "exit code: 1"},
		{
			name: "local files", base: peer{locals: map[string]string{"rootfs": bed.locals["rootfs"], "private": private}},
			state: sh(bed.root, `test "$(cat /src/note)" = "from base"`, llb.AddMount("/src", llb.Local("private"), llb.Readonly)),
			err:   "private",
		},
	}
}

// TestBaseGone lets a child evaluate after the build of base has ended. Only the child's
// session is asked, and a later build does not get the child's failure.
func TestBaseGone(t *testing.T) {
	bed := newRandomBed(t, subject())
	for _, n := range bed.owned(t) {
		t.Run(n.name, func(t *testing.T) {
			n.base.name = "base"
			child := peer{name: "child", secrets: map[string]string{}, locals: bed.locals}
			evaluate := func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(n.state, "true")) }
			for name, ended := range map[string]bool{"ended before the child solved": true, "ended before the child evaluated": false} {
				t.Run(name, func(t *testing.T) {
					leave, ready, left := make(chan struct{}), make(chan error, 1), make(chan error, 1)
					go func() {
						left <- n.base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
							_, err := b.solve(ctx, n.state)
							ready <- err
							<-leave
							return err
						})
					}()
					require.NoError(t, receive(t, ready))
					end := func() {
						close(leave)
						require.NoError(t, receive(t, left))
					}
					if ended {
						end()
					}
					require.NoError(t, child.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
						ref, err := b.solve(ctx, sh(n.state, "true"))
						if err != nil {
							return err
						}
						if !ended {
							end()
						}
						err = within(ctx, t, ref.Evaluate)
						require.ErrorContains(t, err, n.err)
						require.NotContains(t, err.Error(), "builds were asked")
						return nil
					}))
				})
			}
			require.NoError(t, n.base.run(t.Context(), bed.client, evaluate))
		})
	}
}

// TestBasesHaveNothing uses a base that offers no more than its child.
func TestBasesHaveNothing(t *testing.T) {
	bed := newRandomBed(t, subject())
	for _, n := range bed.owned(t) {
		t.Run(n.name, func(t *testing.T) {
			base, child := peer{name: "base", locals: bed.locals}, peer{name: "child", locals: bed.locals}
			require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, n.state); err != nil {
					return err
				}
				err := child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(n.state, "true")) })
				require.ErrorContains(t, err, n.err)
				if n.err != "exit code: 1" { // the error of a step that ran without the need
					require.ErrorContains(t, err, " (2 builds were asked)")
				}
				return nil
			}))
		})
	}
}

// TestStrangerBefore lets a build that offers nothing solve the steps of base before base
// does.
func TestStrangerBefore(t *testing.T) {
	bed := newRandomBed(t, subject())
	for _, n := range bed.owned(t) {
		t.Run(n.name, func(t *testing.T) {
			n.base.name = "base"
			stranger, child := peer{name: "stranger", locals: bed.locals}, peer{name: "child", locals: bed.locals}
			require.NoError(t, stranger.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, n.state); err != nil {
					return err
				}
				return n.base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
					if _, err := b.solve(ctx, n.state); err != nil {
						return err
					}
					return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(n.state, "true")) })
				})
			}))
		})
	}
}

// TestChainedOn checks which builds get what base has: builds that solve steps on a
// result that base's client has received, or that have such a result in an input.
func TestChainedOn(t *testing.T) {
	bed := newRandomBed(t, subject())
	// base has a step that takes its secret, and an unrelated one
	const missing = "secret token: not found"
	args := llb.Args([]string{"/bin/sh", "-c", `test "$(cat /run/secrets/token)" = base # ` + identity.NewID()})
	state := func(opts ...llb.RunOption) llb.State {
		return bed.root.Run(append(opts, args, llb.Network(llb.NetModeNone), secretFile("token"))...).Root()
	}
	other := bed.root.File(llb.Mkdir("/other", 0o755))
	on := func(st llb.State) llb.State { return st.File(llb.Mkdir("/on", 0o755)) }
	beside := func(st llb.State) llb.State { return st.File(llb.Mkdir("/beside", 0o755)) }
	withOther := func(st llb.State) llb.State { return st.File(llb.Copy(other, "/other", "/copy")) }
	for _, tc := range []struct {
		name   string
		solved []llb.State // solved by base, lazily
		forced []llb.State // solved by base, forced
		child  llb.State
		input  bool // the child solves a Dockerfile with it as an input
		late   bool // base solves after the child has solved
		err    string
	}{
		{name: "on the result", solved: []llb.State{state()}, child: on(state())},
		{name: "the result itself", solved: []llb.State{state()}, child: state(), err: missing},
		{name: "an ancestor of the result", solved: []llb.State{on(state())}, child: state(), err: missing},
		{name: "beside the result", solved: []llb.State{on(state())}, child: beside(state()), err: missing},
		{name: "not on the result", solved: []llb.State{other, on(state())}, child: beside(state()), err: missing},
		{name: "on another result", solved: []llb.State{other, on(state())}, child: withOther(state())},
		{name: "on another result, that is forced", solved: []llb.State{on(state())}, forced: []llb.State{other}, child: withOther(state())},
		{name: "on another result, and the step has been forced", solved: []llb.State{other}, forced: []llb.State{on(state())}, child: withOther(state(llb.IgnoreCache))},
		{name: "on the result, that is forced", forced: []llb.State{state()}, child: on(state(llb.IgnoreCache))},
		{name: "the result itself, that is forced", forced: []llb.State{state()}, child: state(llb.IgnoreCache), err: missing},
		{name: "solved before base", solved: []llb.State{state()}, child: on(state()), late: true, err: missing},
		{name: "the result is an input", solved: []llb.State{state()}, child: state(), input: true},
		{name: "an input is on the result", solved: []llb.State{state()}, child: on(state()), input: true},
		{name: "an input is an ancestor of the result", solved: []llb.State{on(state())}, child: state(), input: true, err: missing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// without cache, so that a forced result is not found there
			require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
			base := peer{name: "base", secrets: map[string]string{"token": "base"}, locals: bed.locals}
			child := peer{name: "child", secrets: map[string]string{}, locals: bed.locals}
			require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				solveBase := func() error {
					for _, st := range tc.forced {
						if _, err := b.solveWith(ctx, st, gateway.SolveRequest{Evaluate: true}, false); err != nil {
							return err
						}
					}
					for _, st := range tc.solved {
						if _, err := b.solve(ctx, st); err != nil {
							return err
						}
					}
					return nil
				}
				if !tc.late {
					if err := solveBase(); err != nil {
						return err
					}
				}
				return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
					ref, err := b.solveWith(ctx, tc.child, gateway.SolveRequest{}, tc.input)
					if err != nil {
						return err
					}
					if tc.late {
						if err := solveBase(); err != nil {
							return err
						}
					}
					err = ref.Evaluate(ctx)
					if tc.err != "" {
						require.ErrorContains(t, err, tc.err)
						require.NotContains(t, err.Error(), "builds were asked")
						return nil
					}
					return err
				})
			}))
		})
	}
}

// TestNothingKept runs a step of base without cache for a child, and again for base after
// the child has ended, as on upstream's daemon.
func TestNothingKept(t *testing.T) {
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			bed := newRandomBed(t, flavor)
			st := sh(bed.root, "cat /proc/sys/kernel/random/uuid > /seen", llb.IgnoreCache)
			solve := func(ctx context.Context, b peerBuild) (gateway.Reference, error) { return b.solve(ctx, st) }
			base, child := peer{name: "base", locals: bed.locals}, peer{name: "child", locals: bed.locals}
			require.NoError(t, base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
				ref, err := solve(ctx, b)
				if err != nil {
					return err
				}
				first, err := child.read(ctx, bed.client, func(ctx context.Context, b peerBuild) (gateway.Reference, error) { return b.solve(ctx, sh(st, "true")) })
				if err != nil {
					return err
				}
				again, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen"})
				require.NotEqual(t, first, string(again))
				return err
			}))
		})
	}
}

// TestSilentBase stops the client of base. A step that the child can serve continues when
// the health check of base's session fails.
func TestSilentBase(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a health check")
	}
	t.Parallel()
	bed := newRandomBed(t, testbed.Graphload)
	state := sh(bed.root, `test "$(cat /run/secrets/token)" = child`, secretFile("token"))

	// base connects through a proxy that can be stopped
	proxy := newProxy(t, strings.TrimPrefix(bed.daemon.Addr, "unix://"))
	stopped, err := client.New(t.Context(), "unix://"+proxy.addr)
	require.NoError(t, err)
	defer stopped.Close()

	base := peer{name: "base", secrets: map[string]string{"token": "base"}, locals: bed.locals}
	child := peer{name: "child", secrets: map[string]string{"token": "child"}, locals: bed.locals}
	solved := make(chan error, 1)
	go base.run(t.Context(), stopped, func(ctx context.Context, b peerBuild) error {
		_, err := b.solve(ctx, state)
		solved <- err
		if err == nil {
			<-ctx.Done()
		}
		return err
	})
	require.NoError(t, receive(t, solved))
	proxy.stop()
	start := time.Now()
	require.NoError(t, child.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) }))
	require.Less(t, time.Since(start), time.Minute)
	require.Greater(t, time.Since(start), time.Second, "base was not asked")
	t.Logf("the child waited %s", time.Since(start))
}

// proxy forwards connections to a unix socket until it is stopped. It then behaves like a
// client that no longer runs.
type proxy struct {
	addr    string
	stopped chan struct{}

	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	p := &proxy{addr: filepath.Join(t.TempDir(), "proxy.sock"), stopped: make(chan struct{})}
	l, err := net.Listen("unix", p.addr) //nolint:noctx // closed at the end of the test
	require.NoError(t, err)
	t.Cleanup(func() {
		l.Close()
		p.cut()
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", target) //nolint:noctx // answers at once
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			go p.copy(in, out)
			go p.copy(out, in)
		}
	}()
	return p
}

// cut closes the connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) stop() {
	close(p.stopped)
}

func (p *proxy) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		select {
		case <-p.stopped:
			return // do not pass on what was read; the connection stays open
		default:
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	dst.Close()
}
