package gateway

import (
	"context"
	"fmt"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	spb "github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/testutil/integration"
	"github.com/moby/buildkit/util/testutil/workers"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func init() {
	if workers.IsTestDockerd() {
		workers.InitDockerdWorker()
	} else {
		workers.InitOCIWorker()
		workers.InitContainerdWorker()
	}
}

func TestGatewayLazySolveIntegration(t *testing.T) {
	integration.Run(t, integration.TestFuncs(
		testLazySolveFrontendInput,
		testLazySolveReads,
	), integration.WithMirroredImages(integration.OfficialImages("busybox:latest")))
}

// dockerfileRequest is a lazy solve of a Dockerfile, with the results of other
// solves as its named contexts.
func dockerfileRequest(ctx context.Context, dockerfile string, contexts map[string]llb.State) (gwclient.SolveRequest, error) {
	src := llb.Scratch().File(llb.Mkfile("Dockerfile", 0600, []byte(dockerfile)))
	req := gwclient.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: map[string]string{}, FrontendInputs: map[string]*spb.Definition{}}
	inputs := map[string]llb.State{"dockerfile": src, "context": src}
	for name, st := range contexts {
		req.FrontendOpt["context:"+name] = "input:" + name
		inputs[name] = st
	}
	for name, st := range inputs {
		def, err := st.Marshal(ctx)
		if err != nil {
			return req, err
		}
		req.FrontendInputs[name] = def.ToPB()
	}
	return req, nil
}

func solveDockerfile(ctx context.Context, c gwclient.Client, dockerfile string, contexts map[string]llb.State) (gwclient.Reference, error) {
	req, err := dockerfileRequest(ctx, dockerfile, contexts)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, req)
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// runBase runs a build that lazily solves a Dockerfile. The step of the Dockerfile
// writes a secret that only this build has to /token. While the build is active,
// runBase calls f with the definition of the ref.
func runBase(ctx context.Context, c *client.Client, f func(context.Context, llb.State) error) error {
	opt := client.SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("base")})}}
	_, err := c.Build(ctx, opt, "", func(ctx context.Context, gc gwclient.Client) (*gwclient.Result, error) {
		ref, err := solveDockerfile(ctx, gc, fmt.Sprintf("FROM busybox:latest\nRUN --mount=type=secret,id=token cp /run/secrets/token /token # %s\n", identity.NewID()), nil)
		if err != nil {
			return nil, err
		}
		st, err := ref.ToState()
		if err != nil {
			return nil, err
		}
		if err := f(ctx, st); err != nil {
			return nil, err
		}
		return gwclient.NewResult(), ref.Evaluate(ctx)
	}, nil)
	return err
}

// testLazySolveFrontendInput chains Dockerfiles as bake does, with a named
// context.
func testLazySolveFrontendInput(t *testing.T, sb integration.Sandbox) {
	c, err := client.New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	err = runBase(sb.Context(), c, func(ctx context.Context, base llb.State) error {
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, gc gwclient.Client) (*gwclient.Result, error) {
			ref, err := solveDockerfile(ctx, gc, `FROM base
RUN test "$(cat /token)" = base
`, map[string]llb.State{"base": base})
			if err != nil {
				return nil, err
			}
			return gwclient.NewResult(), ref.Evaluate(ctx)
		}, nil)
		return err
	})
	require.NoError(t, err)
}

// testLazySolveReads evaluates the child by reading its files.
func testLazySolveReads(t *testing.T, sb integration.Sandbox) {
	c, err := client.New(sb.Context(), sb.Address())
	require.NoError(t, err)
	defer c.Close()

	for _, tc := range []struct {
		name string
		read func(context.Context, gwclient.Client, gwclient.Reference) error
	}{
		{"ReadFile", func(ctx context.Context, _ gwclient.Client, ref gwclient.Reference) error {
			dt, err := ref.ReadFile(ctx, gwclient.ReadRequest{Filename: "/token"})
			if err == nil && string(dt) != "base" {
				return errors.Errorf("the file has %q", dt)
			}
			return err
		}},
		{"ReadDir", func(ctx context.Context, _ gwclient.Client, ref gwclient.Reference) error {
			files, err := ref.ReadDir(ctx, gwclient.ReadDirRequest{Path: "/"})
			if err == nil && len(files) != 1 {
				return errors.Errorf("there are %d files", len(files))
			}
			return err
		}},
		{"StatFile", func(ctx context.Context, _ gwclient.Client, ref gwclient.Reference) error {
			_, err := ref.StatFile(ctx, gwclient.StatRequest{Path: "/token"})
			return err
		}},
		{"NewContainer", func(ctx context.Context, gc gwclient.Client, ref gwclient.Reference) error {
			ctr, err := gc.NewContainer(ctx, gwclient.NewContainerRequest{
				Mounts: []gwclient.Mount{{Dest: "/", MountType: spb.MountType_BIND, Ref: ref}},
			})
			if err != nil {
				return err
			}
			return ctr.Release(ctx)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := runBase(sb.Context(), c, func(ctx context.Context, base llb.State) error {
				_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, gc gwclient.Client) (*gwclient.Result, error) {
					def, err := llb.Scratch().File(llb.Copy(base, "/token", "/token")).Marshal(ctx)
					if err != nil {
						return nil, err
					}
					res, err := gc.Solve(ctx, gwclient.SolveRequest{Definition: def.ToPB()})
					if err != nil {
						return nil, err
					}
					ref, err := res.SingleRef()
					if err != nil {
						return nil, err
					}
					return gwclient.NewResult(), tc.read(ctx, gc, ref)
				}, nil)
				return err
			})
			require.NoError(t, err)
		})
	}
}
