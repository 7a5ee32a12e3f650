package client

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/continuity/fs/fstest"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	sourcepolicypb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/testutil/integration"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/crypto/ssh"
)

func TestLazySolveIntegration(t *testing.T) {
	integration.Run(t, integration.TestFuncs(
		testLazySolveChildFirst,
		testLazySolveExport,
		testLazySolveNeverEvaluated,
		testLazySolveSameSecretID,
		testLazySolveIsolation,
		testLazySolveNoCacheTwin,
		testLazySolveUnloadable,
		testLazySolveOwnerGone,
		testSolveEvaluateConcurrently,
		testSolveLoadCap,
	), integration.WithMirroredImages(integration.OfficialImages("busybox:latest")))
}

func withSecrets(values map[string]string) SolveOpt {
	m := map[string][]byte{}
	for k, v := range values {
		m[k] = []byte(v)
	}
	return SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(m)}}
}

// runScript returns a step that no other test has.
func runScript(st llb.State, script string, opts ...llb.RunOption) llb.State {
	args := llb.Args([]string{"/bin/sh", "-c", script + " # " + identity.NewID()})
	return st.Run(append([]llb.RunOption{args}, opts...)...).Root()
}

// checkSecret returns a step that passes only if its secret has the value.
func checkSecret(st llb.State, id, value string) llb.State {
	return runScript(st, fmt.Sprintf(`test "$(cat /run/secrets/%s)" = %s`, id, value), llb.AddSecret("/run/secrets/"+id, llb.SecretID(id)))
}

// lazyBuild runs a build with its own session that solves st lazily, and calls f
// with the ref while that build is active.
func lazyBuild(ctx context.Context, c *Client, opt SolveOpt, st llb.State, status chan *SolveStatus, f func(context.Context, gateway.Reference) error) error {
	_, err := c.Build(ctx, opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		def, err := st.Marshal(ctx)
		if err != nil {
			return nil, err
		}
		res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		return gateway.NewResult(), f(ctx, ref)
	}, status)
	return err
}

func evaluate(ctx context.Context, ref gateway.Reference) error {
	return ref.Evaluate(ctx)
}

func testLazySolveChildFirst(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(t, err)
	keyFile := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(block), 0600))
	agent, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{Paths: []string{keyFile}}})
	require.NoError(t, err)

	busybox := llb.Image("busybox:latest")
	local := llb.Local("src", llb.LocalUniqueID(identity.NewID()))
	for _, tc := range []struct {
		name string
		opt  SolveOpt // that only base has
		base llb.State
	}{
		{
			name: "secret",
			opt:  withSecrets(map[string]string{"token": "base"}),
			base: checkSecret(busybox, "token", "base"),
		},
		{
			name: "optional ssh agent",
			opt:  SolveOpt{Session: []session.Attachable{agent}},
			base: runScript(busybox, `test -S "$SSH_AUTH_SOCK"`, llb.AddSSHSocket(llb.SSHOptional)),
		},
		{
			name: "local directory",
			opt: SolveOpt{LocalMounts: map[string]fsutil.FS{
				"src": integration.Tmpdir(t, fstest.CreateFile("data", []byte("base"), 0600)),
			}},
			base: runScript(busybox, `test "$(cat /src/data)" = base`, llb.AddMount("/src", local, llb.Readonly)),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			child := runScript(tc.base, "true")
			err := lazyBuild(sb.Context(), c, tc.opt, tc.base, nil, func(ctx context.Context, base gateway.Reference) error {
				if err := lazyBuild(ctx, c, SolveOpt{}, child, nil, evaluate); err != nil {
					return err
				}
				return base.Evaluate(ctx)
			})
			require.NoError(t, err)
		})
	}
}

// testLazySolveExport evaluates the child only through its exporter.
func testLazySolveExport(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := runScript(llb.Image("busybox:latest"), "cp /run/secrets/token /token", llb.AddSecret("/run/secrets/token", llb.SecretID("token")))
	child := llb.Scratch().File(llb.Copy(base, "/token", "/token"))
	destDir := t.TempDir()
	err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token": "base"}), base, nil, func(ctx context.Context, _ gateway.Reference) error {
		_, err := c.Build(ctx, SolveOpt{
			Exports: []ExportEntry{{Type: ExporterLocal, OutputDir: destDir}},
		}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			def, err := child.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		}, nil)
		return err
	})
	require.NoError(t, err)
	dt, err := os.ReadFile(filepath.Join(destDir, "token"))
	require.NoError(t, err)
	require.Equal(t, "base", string(dt))
}

func testLazySolveNeverEvaluated(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token", "base")
	child := runScript(base, "true")
	collect := func() (chan *SolveStatus, func() (names []string)) {
		ch := make(chan *SolveStatus)
		done := make(chan []string)
		go func() {
			var names []string
			for st := range ch {
				for _, v := range st.Vertexes {
					names = append(names, v.Name)
				}
			}
			done <- names
		}()
		return ch, func() []string { return <-done }
	}
	baseStatus, baseNames := collect()
	childStatus, childNames := collect()
	err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token": "base"}), base, baseStatus, func(ctx context.Context, _ gateway.Reference) error {
		return lazyBuild(ctx, c, SolveOpt{}, child, childStatus, evaluate)
	})
	require.NoError(t, err)
	require.Contains(t, strings.Join(childNames(), "\n"), "/run/secrets/token")
	require.NotContains(t, strings.Join(baseNames(), "\n"), "/run/secrets/token", "a step that a build does not evaluate is not in its progress")
}

func testLazySolveSameSecretID(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	for range 5 { // often enough that a random order would fail
		base := checkSecret(llb.Image("busybox:latest"), "token", "base")
		child := checkSecret(base, "token", "child")
		err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token": "base"}), base, nil, func(ctx context.Context, ref gateway.Reference) error {
			if err := lazyBuild(ctx, c, withSecrets(map[string]string{"token": "child"}), child, nil, evaluate); err != nil {
				return err
			}
			return ref.Evaluate(ctx)
		})
		require.NoError(t, err)
	}
}

func testLazySolveIsolation(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token", "base")
	thief := checkSecret(base, "token", "base")
	err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token": "base"}), base, nil, func(ctx context.Context, ref gateway.Reference) error {
		if err := lazyBuild(ctx, c, SolveOpt{}, thief, nil, evaluate); err == nil {
			return errors.New("a step of another build was given the secret")
		} else if !strings.Contains(err.Error(), "secret token: not found") {
			return err
		}
		return ref.Evaluate(ctx)
	})
	require.NoError(t, err)
}

// testLazySolveNoCacheTwin runs a third build, also chained on base, that loads
// base's step without cache before the child evaluates it. Both variants of the step
// get base's secret.
func testLazySolveNoCacheTwin(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	script := `test "$(cat /run/secrets/token)" = base # ` + identity.NewID()
	step := func(opts ...llb.RunOption) llb.State {
		return llb.Image("busybox:latest").Run(append([]llb.RunOption{
			llb.Args([]string{"/bin/sh", "-c", script}),
			llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
		}, opts...)...).Root()
	}
	base := step()
	child, third := runScript(base, "true"), runScript(step(llb.IgnoreCache), "true")
	err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token": "base"}), base, nil, func(ctx context.Context, baseRef gateway.Reference) error {
		return lazyBuild(ctx, c, SolveOpt{}, third, nil, func(ctx context.Context, thirdRef gateway.Reference) error {
			if err := lazyBuild(ctx, c, SolveOpt{}, child, nil, evaluate); err != nil {
				return errors.Wrap(err, "child")
			}
			if err := thirdRef.Evaluate(ctx); err != nil {
				return errors.Wrap(err, "third build")
			}
			return baseRef.Evaluate(ctx)
		})
	})
	require.NoError(t, err)
}

// testLazySolveUnloadable solves definitions that cannot be loaded: a lazy solve
// succeeds, and each evaluation returns the error.
func testLazySolveUnloadable(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	for _, tc := range []struct {
		name     string
		st       llb.State
		policies []*sourcepolicypb.Policy
		want     string
	}{
		{
			name: "entitlement",
			st:   runScript(llb.Image("busybox:latest"), "true", llb.Security(llb.SecurityModeInsecure)),
			want: "security.insecure is not allowed",
		},
		{
			name: "source policy",
			st:   runScript(llb.Image("busybox:latest"), "true"),
			policies: []*sourcepolicypb.Policy{{Rules: []*sourcepolicypb.Rule{{
				Action:   sourcepolicypb.PolicyAction_DENY,
				Selector: &sourcepolicypb.Selector{Identifier: "docker-image://docker.io/library/busybox:*"},
			}}}},
			want: sourcepolicy.ErrSourceDenied.Error(),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var evaluated [2]error
			_, err := c.Build(sb.Context(), SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
				def, err := tc.st.Marshal(ctx)
				if err != nil {
					return nil, err
				}
				res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), SourcePolicies: tc.policies})
				if err != nil {
					return nil, err
				}
				ref, err := res.SingleRef()
				if err != nil {
					return nil, err
				}
				for i := range evaluated {
					evaluated[i] = ref.Evaluate(ctx)
				}
				return gateway.NewResult(), nil
			}, nil)
			require.NoError(t, err)
			for _, err := range evaluated {
				require.ErrorContains(t, err, tc.want)
			}
		})
	}
}

// testLazySolveOwnerGone loads a child while base is active, and evaluates it after
// base has ended.
func testLazySolveOwnerGone(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token-of-base", "base")
	child := runScript(base, "true")
	childSolved, baseGone := make(chan struct{}), make(chan struct{})
	childErr := make(chan error, 1)
	err = lazyBuild(sb.Context(), c, withSecrets(map[string]string{"token-of-base": "base"}), base, nil, func(context.Context, gateway.Reference) error {
		go func() {
			childErr <- lazyBuild(sb.Context(), c, SolveOpt{}, child, nil, func(ctx context.Context, ref gateway.Reference) error {
				close(childSolved)
				<-baseGone
				return ref.Evaluate(ctx)
			})
		}()
		select {
		case <-childSolved:
			return nil
		case err := <-childErr:
			return errors.Wrap(err, "child was not solved")
		}
	})
	close(baseGone)
	require.NoError(t, err)
	require.ErrorContains(t, <-childErr, "secret token-of-base: not found")
}

// testSolveEvaluateConcurrently uses a frontend with four platforms whose steps
// wait for each other in a shared cache mount.
func testSolveEvaluateConcurrently(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	if runtime.GOARCH != "amd64" {
		t.Skip("needs four platforms that run on one machine")
	}
	const all = "linux/amd64,linux/amd64/v2,linux/amd64/v3,linux/386"
	solve := func(cacheID, platforms, script string) error {
		dockerfile := fmt.Sprintf("FROM busybox:latest\nARG TARGETPLATFORM\nRUN --mount=type=cache,id=%s,target=/shared,sharing=shared %s # %s\n", cacheID, script, identity.NewID())
		st := llb.Scratch().File(llb.Mkfile("Dockerfile", 0600, []byte(dockerfile)))
		_, err := c.Build(sb.Context(), SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			def, err := st.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return gc.Solve(ctx, gateway.SolveRequest{
				Evaluate:       true,
				Frontend:       "dockerfile.v0",
				FrontendOpt:    map[string]string{"platform": platforms},
				FrontendInputs: map[string]*pb.Definition{"dockerfile": def.ToPB(), "context": def.ToPB()},
			})
		}, nil)
		return err
	}
	// run one after another, the first step would wait until it gives up
	const barrier = `mktemp /shared/in.XXXXXX && i=0; until [ $(ls /shared/in.* | wc -l) -ge 4 ]; do i=$((i+1)); [ $i -le 120 ] || exit 1; sleep 1; done; `
	require.NoError(t, solve(identity.NewID(), all, barrier+"true"), "refs are evaluated at the same time")

	// the first error cancels the other steps, which would leave a file otherwise
	id := identity.NewID()
	err = solve(id, all, barrier+`case $TARGETPLATFORM in linux/386) exit 7;; esac; sleep 60; touch /shared/done`)
	require.ErrorContains(t, err, "exit code: 7")
	require.NoError(t, solve(id, "linux/amd64", "test ! -e /shared/done"), "the other refs are canceled when one of them has failed")
}

func testSolveLoadCap(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	_, err = c.Build(sb.Context(), SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		caps := gc.BuildOpts().Caps
		return gateway.NewResult(), caps.Supports(gatewaypb.CapGatewaySolveLoad)
	}, nil)
	require.NoError(t, err)
}
