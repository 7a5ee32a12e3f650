package integration

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/util/progress/progresswriter"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

var allCredentials = flag.Bool("credentials", false, "all combinations in the tests of credentials")

// countedLogins is the auth service of a client with a docker configuration. It counts
// how often it is asked for a password, and how often it returns one. It also records
// what the progress of the client shows of that.
type countedLogins struct {
	auth.AuthServer
	asked, passwords atomic.Int64

	mu    sync.Mutex
	shown []string
}

func newCountedLogins(t *testing.T, config string) *countedLogins {
	t.Helper()
	provider, err := testbed.AuthProvider(config)
	require.NoError(t, err)
	l := &countedLogins{AuthServer: provider.(auth.AuthServer)}
	provider.(interface{ SetLogger(progresswriter.Logger) }).SetLogger(func(st *client.SolveStatus) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, v := range st.Vertexes {
			l.shown = append(l.shown, v.Name)
		}
	})
	return l
}

// sharing reports if the progress has shown that the client shared a password.
func (l *countedLogins) sharing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.shown, func(name string) bool { return strings.Contains(name, "sharing credentials") })
}

func (l *countedLogins) Register(s *grpc.Server) {
	auth.RegisterAuthServer(s, l)
}

func (l *countedLogins) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	resp, err := l.AuthServer.Credentials(ctx, req)
	l.asked.Add(1)
	if resp.GetSecret() != "" {
		l.passwords.Add(1)
	}
	return resp, err
}

// TestRefusedLogins uses registries that accept only base's login, or only that of the
// child, which evaluates first. The other build has no login, or an outdated password.
func TestRefusedLogins(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	testRefusedLogins(t, serveDaemon)
}

func testRefusedLogins(t *testing.T, serve serveFunc) {
	const good = "password"
	var needs []service
	registries := map[string]*testbed.Registry{}
	for name, tokens := range map[string]*testbed.TokenOptions{"basic": nil, "tokens": {}} {
		r, err := testbed.StartRegistry(t.Context(), testbed.RegistryOptions{Users: map[string]string{"user": good}, Tokens: tokens})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, r.Close()) })
		registries[name] = r
		needs = append(needs, registryService(r))
	}
	bed := newRandomBedWith(t, serve(t, subject(), needs...).client(t))
	for name, r := range registries {
		push := peer{name: "push", locals: bed.locals, docker: dockerLogin(t, "user", good, r)}
		for i, tc := range []struct{ name, base, child string }{
			{name: "base is anonymous", child: good},
			{name: "base is refused", base: "old", child: good},
			{name: "child is anonymous", base: good},
			{name: "child is refused", base: good, child: "old"},
			{name: "both are accepted", base: good, child: good},
			{name: "none is accepted", base: "old"},
		} {
			t.Run(name+"/"+tc.name, func(t *testing.T) {
				// the daemon caches the tokens of a repository
				image := fmt.Sprintf("%s/base%d:latest", r.Host, i)
				pushState(t, bed.client, push, bed.root, image)
				require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
				var logins []*countedLogins
				for _, password := range []string{tc.base, tc.child} {
					config := dockerLogin(t, "", "")
					if password != "" {
						config = dockerLogin(t, "user", password, r)
					}
					logins = append(logins, newCountedLogins(t, config))
				}
				base := peer{name: "base", locals: bed.locals, attach: []session.Attachable{logins[0]}}
				child := peer{name: "child", locals: bed.locals, attach: []session.Attachable{logins[1]}}
				state := sh(llb.Image(image, llb.ResolveModeForcePull), "true")
				err := base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
					if _, err := b.solve(ctx, state); err != nil {
						return err
					}
					return child.run(ctx, bed.client, func(ctx context.Context, b peerBuild) error {
						ref, err := b.solve(ctx, state.File(llb.Mkfile("/added", 0o600, []byte("by the child"))))
						if err != nil {
							return err
						}
						_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/bin/sh"})
						return err
					})
				})
				if tc.base == good || tc.child == good {
					require.NoError(t, err)
				} else {
					require.Regexp(t, "401 Unauthorized|authorization failed", err)
				}
				for i, l := range logins {
					require.LessOrEqual(t, l.passwords.Load(), int64(1), "client %d shares its password at most once", i)
				}
				if name == "tokens" {
					require.Zero(t, logins[0].passwords.Load()+logins[1].passwords.Load(), "passwords stay with clients that fetch tokens")
				}
				if tc.base == good {
					require.Zero(t, logins[1].passwords.Load(), "the child is not asked if the server accepts base")
				}
			})
		}
	}
}

// TestCredentials uses sources for which only base has the credentials. The child
// evaluates first.
func TestCredentials(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	testCredentials(t, serveDaemon)
}

func testCredentials(t *testing.T, serve serveFunc) {
	const token = "the-token"
	git, err := testbed.StartGitServer(t.Context(), map[string]string{"file": "content"}, testbed.Users{token: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Close()) })
	web, err := testbed.StartHTTPServer(fstest.MapFS{"file": {Data: []byte("content")}}, testbed.Users{token: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, web.Close()) })
	registry, err := testbed.StartRegistry(t.Context(), testbed.RegistryOptions{Users: map[string]string{"user": "password"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, registry.Close()) })
	login := dockerLogin(t, "user", "password", registry)

	bed := newRandomBedWith(t, serve(t, subject(), registryService(registry), webService(t, git.URL), webService(t, web.URL)).client(t))
	image := registry.Host + "/base:latest"
	pushState(t, bed.client, peer{name: "push", locals: bed.locals, docker: login}, bed.root, image)

	for _, tc := range []struct {
		name  string
		base  peer
		state llb.State
		err   string // error without the credentials
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
			base:  peer{docker: login},
			state: sh(llb.Image(image, llb.ResolveModeForcePull), "true"),
			err:   "401 Unauthorized",
		},
	} {
		for _, child := range []peer{
			{name: "child without anything"},
			{name: "child with other secrets", secrets: map[string]string{"other": "x"}},
			{name: "anonymous child", docker: dockerLogin(t, "", "")},
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

				// the same if a build without credentials started before base
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
