package client

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/testutil/integration"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func TestLazySolveIntegration(t *testing.T) {
	integration.Run(t, integration.TestFuncs(
		testLazySolveChildFirst,
		testLazySolveNeverEvaluated,
		testLazySolveSameSecretID,
		testLazySolveIsolation,
		testSolveEvaluateConcurrently,
		testSolveLoadCap,
	), integration.WithMirroredImages(integration.OfficialImages("busybox:latest")))
}

func secretSession(values map[string]string) []session.Attachable {
	m := map[string][]byte{}
	for k, v := range values {
		m[k] = []byte(v)
	}
	return []session.Attachable{secretsprovider.FromMap(m)}
}

// checkSecret is a step that passes only if it is given the value.
func checkSecret(st llb.State, id, value string) llb.State {
	return st.Run(
		llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf(`test "$(cat /run/secrets/%s)" = %s && echo %s > /%s`, id, value, identity.NewID(), id)}),
		llb.AddSecret("/run/secrets/"+id, llb.SecretID(id)),
	).Root()
}

func lazySolve(ctx context.Context, gc gateway.Client, st llb.State) (gateway.Reference, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// runBase runs a build with a session of its own that solves st lazily, and f
// while that build is active. Then base is evaluated if evaluate is set.
func runBase(ctx context.Context, c *Client, secrets map[string]string, st llb.State, status chan *SolveStatus, evaluate bool, f func(context.Context) error) error {
	_, err := c.Build(ctx, SolveOpt{Session: secretSession(secrets)}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		ref, err := lazySolve(ctx, gc, st)
		if err != nil {
			return nil, err
		}
		if err := f(ctx); err != nil {
			return nil, err
		}
		if !evaluate {
			return gateway.NewResult(), nil
		}
		return gateway.NewResult(), ref.Evaluate(ctx)
	}, status)
	return err
}

func evaluateIn(ctx context.Context, c *Client, secrets map[string]string, st llb.State, status chan *SolveStatus) error {
	_, err := c.Build(ctx, SolveOpt{Session: secretSession(secrets)}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		ref, err := lazySolve(ctx, gc, st)
		if err != nil {
			return nil, err
		}
		return gateway.NewResult(), ref.Evaluate(ctx)
	}, status)
	return err
}

func testLazySolveChildFirst(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token", "base")
	child := base.Run(llb.Shlex("true")).Root()
	err = runBase(sb.Context(), c, map[string]string{"token": "base"}, base, nil, true, func(ctx context.Context) error {
		return evaluateIn(ctx, c, nil, child, nil)
	})
	require.NoError(t, err)
}

func testLazySolveNeverEvaluated(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token", "base")
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
	err = runBase(sb.Context(), c, map[string]string{"token": "base"}, base, baseStatus, false, func(ctx context.Context) error {
		return evaluateIn(ctx, c, nil, base, childStatus)
	})
	require.NoError(t, err)
	require.Contains(t, strings.Join(childNames(), "\n"), "/run/secrets/token")
	require.NotContains(t, strings.Join(baseNames(), "\n"), "/run/secrets/token", "what a build does not evaluate is not in its progress")
}

func testLazySolveSameSecretID(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	for range 5 {
		base := checkSecret(llb.Image("busybox:latest"), "token", "base")
		child := checkSecret(base.Run(llb.Shlex("true")).Root(), "token", "child")
		err = runBase(sb.Context(), c, map[string]string{"token": "base"}, base, nil, true, func(ctx context.Context) error {
			return evaluateIn(ctx, c, map[string]string{"token": "child"}, child, nil)
		})
		require.NoError(t, err)
	}
}

func testLazySolveIsolation(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	base := checkSecret(llb.Image("busybox:latest"), "token", "base")
	thief := checkSecret(base.Run(llb.Shlex("true")).Root(), "token", "base")
	err = runBase(sb.Context(), c, map[string]string{"token": "base"}, base, nil, true, func(ctx context.Context) error {
		err := evaluateIn(ctx, c, nil, thief, nil)
		if err == nil {
			return errors.New("a step of another build was given the secret")
		}
		require.ErrorContains(t, err, "secret token: not found")
		return nil
	})
	require.NoError(t, err)
}

// testSolveEvaluateConcurrently has a frontend of four platforms whose steps
// wait for each other.
func testSolveEvaluateConcurrently(t *testing.T, sb integration.Sandbox) {
	c, err := New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	const platforms = 4
	dockerfile := func(cmd string) llb.State {
		return llb.Scratch().File(llb.Mkfile("Dockerfile", 0600, []byte("FROM busybox:latest\nARG TARGETPLATFORM\nRUN "+cmd+" # "+identity.NewID()+"\n")))
	}
	solve := func(ctx context.Context, st llb.State) error {
		_, err := c.Build(ctx, SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			def, err := st.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return gc.Solve(ctx, gateway.SolveRequest{
				Evaluate: true,
				Frontend: "dockerfile.v0",
				FrontendOpt: map[string]string{
					"platform": "linux/amd64,linux/amd64/v2,linux/amd64/v3,linux/386",
				},
				FrontendInputs: map[string]*pb.Definition{"dockerfile": def.ToPB(), "context": def.ToPB()},
			})
		}, nil)
		return err
	}
	require.NoError(t, solve(sb.Context(), dockerfile("true"))) // the image is there

	start := time.Now()
	require.NoError(t, solve(sb.Context(), dockerfile("sleep 2")))
	elapsed := time.Since(start)
	require.Less(t, elapsed, 2*2*time.Second, "%d refs of two seconds each run at the same time", platforms)

	start = time.Now()
	require.Error(t, solve(sb.Context(), dockerfile(`case $TARGETPLATFORM in linux/386) exit 1;; *) sleep 20;; esac`)))
	require.Less(t, time.Since(start), 10*time.Second, "the first error cancels the others")
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
