package integration

import (
	"context"
	"testing"
	"testing/fstest"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// registryLogin answers for one registry, as a client does that is logged in
// there, and for no other.
type registryLogin struct {
	auth.UnimplementedAuthServer
	host, user, password string
}

func (l *registryLogin) Register(s *grpc.Server) {
	auth.RegisterAuthServer(s, l)
}

func (l *registryLogin) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	if req.Host != l.host {
		return &auth.CredentialsResponse{}, nil
	}
	return &auth.CredentialsResponse{Username: l.user, Secret: l.password}, nil
}

// TestCredentials has sources for which only base has the credentials. A child
// evaluates first.
func TestCredentials(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	const token = "the-token"
	git, err := testbed.StartGitServer(t.Context(), map[string]string{"file": "content"}, token)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Close()) })
	web, err := testbed.StartHTTPServer(fstest.MapFS{"file": {Data: []byte("content")}}, token)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, web.Close()) })
	registry, err := testbed.StartRegistry(t.Context(), testbed.RegistryOptions{User: "user", Password: "password"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, registry.Close()) })
	login := &registryLogin{host: registry.Host, user: "user", password: "password"}

	bed := newRandomBedOn(t, testbed.DaemonOptions{Flavor: subject(), Config: registry.DaemonConfig()})
	image := registry.Host + "/base:latest"
	pushState(t, bed.client, peer{name: "push", locals: bed.locals, attach: []session.Attachable{login}}, bed.root, image)

	for _, tc := range []struct {
		name  string
		base  peer
		state llb.State
		err   string // without the credentials
	}{
		{
			name:  "git token",
			base:  peer{secrets: map[string]string{"GIT_AUTH_TOKEN": token}},
			state: sh(bed.root, `test "$(cat /src/file)" = content`, llb.AddMount("/src", llb.Git(git.URL, "main"))),
			err:   "could not read Username",
		},
		{
			name:  "http token",
			base:  peer{secrets: map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": token}},
			state: sh(bed.root, `test "$(cat /src/file)" = content`, llb.AddMount("/src", llb.HTTP(web.URL+"/file", llb.Filename("file")))),
			err:   "status 401",
		},
		{
			name:  "registry login",
			base:  peer{attach: []session.Attachable{login}},
			state: sh(llb.Image(image, llb.ResolveModeForcePull), "true"),
			err:   "401 Unauthorized",
		},
	} {
		for _, child := range []peer{
			{name: "child without anything"},
			{name: "child with other secrets", secrets: map[string]string{"other": "x"}},
			{name: "anonymous child", attach: []session.Attachable{&registryLogin{}}},
		} {
			t.Run(tc.name+"/"+child.name, func(t *testing.T) {
				tc.base.name, tc.base.locals, child.locals = "base", bed.locals, bed.locals
				require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
				evaluate := func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(tc.state, "true")) }
				require.ErrorContains(t, child.run(t.Context(), bed.client, evaluate), tc.err, "the child has no credentials")
				withBase := func(ctx context.Context) error {
					return tc.base.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
						ref, err := b.solve(ctx, tc.state)
						if err != nil {
							return err
						}
						if err := child.run(ctx, bed.client, evaluate); err != nil {
							return err
						}
						return ref.Evaluate(ctx)
					})
				}
				require.NoError(t, withBase(t.Context()))

				// the same when a build that has none was there before base
				require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
				unrelated := child
				unrelated.name = "unrelated"
				require.NoError(t, unrelated.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
					if _, err := b.solve(ctx, tc.state); err != nil {
						return err
					}
					return withBase(ctx)
				}))
			})
		}
	}
}
