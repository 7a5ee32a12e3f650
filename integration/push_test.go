package integration

import (
	"context"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
)

// pushAccess is the policy of a registry with images that all users may pull, images that
// only base may pull, and repositories that either base or the child may push to.
func pushAccess(user string, a testbed.Access) bool {
	owner, _, _ := strings.Cut(a.Repository, "/")
	switch {
	case user == "base":
		return true
	case a.Action == "pull":
		return owner != "private"
	}
	return user == "child" && owner == "child"
}

// TestBaseNeverPushes lets a child on an image of base push to the registry of that image.
// The child can push only what its own login may push, as on upstream's daemon. Base's
// login is never used to push.
func TestBaseNeverPushes(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	rootfs := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(rootfs))
	registries, config := map[string]*testbed.Registry{}, ""
	for kind, tokens := range map[string]*testbed.TokenOptions{"basic": nil, "tokens": {}, "tokens that are denied": {Deny: true}} {
		registries[kind] = newRegistry(t, testbed.RegistryOptions{
			Users: map[string]string{"base": good, "child": good}, Tokens: tokens, Allow: pushAccess,
		})
		config += registries[kind].DaemonConfig()
	}
	clients := map[testbed.Flavor]*client.Client{}
	for _, flavor := range testbed.Flavors {
		clients[flavor] = newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config}))
	}
	image := func(name string) func(*client.SolveOpt) {
		return func(opt *client.SolveOpt) {
			opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}}}
		}
	}
	cache := func(name string) func(*client.SolveOpt) {
		return func(opt *client.SolveOpt) {
			opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": name, "mode": "max"}}}
		}
	}
	for kind, r := range registries {
		anonymous, login := dockerLogin(t, "", ""), dockerLogin(t, "child", good, r)
		for _, tc := range []struct {
			name   string
			from   string // owner of the image of base
			child  string // login
			export func(*client.SolveOpt)
			cached bool // exports the cache, not an image
			pushed bool
		}{
			{name: "image", from: "public", child: login, export: image(r.Host + "/base/image")},
			{name: "image of an anonymous child", from: "public", child: anonymous, export: image(r.Host + "/base/image")},
			{name: "image over the one of base", from: "public", child: login, export: image(r.Host + "/public/image")},
			{name: "own image", from: "public", child: login, export: image(r.Host + "/child/image"), pushed: true},
			{name: "own image on a private one", from: "private", child: login, export: image(r.Host + "/child/private"), pushed: true},
			{name: "image on a private one", from: "private", child: login, export: image(r.Host + "/base/private")},
			{name: "image over a private one", from: "private", child: login, export: image(r.Host + "/private/image")},
			{name: "image of an anonymous child on a private one", from: "private", child: anonymous, export: image(r.Host + "/base/private")},
			{name: "cache", from: "public", child: login, export: cache(r.Host + "/base/cache"), cached: true},
			{name: "cache of an anonymous child", from: "public", child: anonymous, export: cache(r.Host + "/base/cache"), cached: true},
			{name: "own cache", from: "public", child: login, export: cache(r.Host + "/child/cache"), cached: true, pushed: true},
			{name: "own cache of a private image", from: "private", child: login, export: cache(r.Host + "/child/private-cache"), cached: true, pushed: true},
			{name: "cache of a private image", from: "private", child: login, export: cache(r.Host + "/base/private-cache"), cached: true},
		} {
			for _, on := range onBase[:3] {
				if tc.cached && on.input || !*allCredentials && (on.input || on.unlazies || kind == "tokens that are denied") {
					continue
				}
				t.Run(kind+"/"+tc.name+"/"+on.name, func(t *testing.T) {
					name, err := r.Push(t.Context(), "base", tc.from+"/image", os.DirFS(rootfs), fstest.MapFS{"id": {Data: []byte(identity.NewID())}})
					require.NoError(t, err)
					errs := map[testbed.Flavor]error{}
					for _, flavor := range testbed.Flavors {
						c := clients[flavor]
						require.NoError(t, c.Prune(t.Context(), nil, client.PruneAll))
						r.Requests()
						base, child := peer{name: "base", docker: dockerLogin(t, "base", good, r)}, peer{name: "child", docker: tc.child}
						if on.input {
							child.locals = map[string]string{"dockerfile": t.TempDir()}
							require.NoError(t, os.WriteFile(child.locals["dockerfile"]+"/Dockerfile.steps", []byte("FROM steps\n"), 0o600))
						}
						state := llb.Image(name, llb.ResolveModeForcePull)
						require.NoError(t, base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
							if _, err := b.solve(ctx, state); err != nil {
								return err
							}
							opt, err := child.options()
							if err != nil {
								return err
							}
							tc.export(&opt)
							_, errs[flavor] = c.Build(ctx, opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
								return peerBuild{gc}.result(ctx, on.state(state), on.input)
							}, nil)
							return nil
						}))
						for _, req := range r.Requests() {
							if req.User == "base" {
								require.Contains(t, []string{http.MethodGet, http.MethodHead, http.MethodPost}, req.Method, "%s: %+v", flavor, req)
								require.NotContains(t, strings.Join(req.Scopes, " "), "push", "%s: %+v", flavor, req)
								if req.Method == http.MethodPost {
									require.NotEmpty(t, req.Scopes, "%s: %+v", flavor, req)
								}
							}
						}
					}
					up, ours := errs[testbed.Upstream], errs[testbed.Graphload]
					t.Logf("upstream: %v", up)
					t.Logf("ours: %v", ours)
					if tc.pushed && tc.from == "private" && kind == "tokens that are denied" && ours != nil {
						// The pusher asks for one token, to push and to pull the layers from
						// their repository. It does not retry if that is refused.
						require.ErrorContains(t, ours, "failed to fetch oauth token: denied")
						return
					}
					if tc.pushed {
						require.NoError(t, ours)
						if tc.from == "public" {
							require.NoError(t, up)
						}
						return
					}
					require.Error(t, ours)
					if tc.from == "public" && (kind != "basic" || tc.child == login) { // the child can pull these without base
						require.Equal(t, sameError(up), sameError(ours))
					}
				})
			}
		}
	}
}

var (
	digests      = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	buildsAsked  = regexp.MustCompile(` \(\d+ builds were asked\)`)
	identifiers  = regexp.MustCompile(`\b[0-9a-z]{25,26}\b`)
	uploadStates = regexp.MustCompile(`(uploads/)[^"\s]*`)
)

// sameError returns an error without the parts that differ between two runs, and without
// the number of builds.
func sameError(err error) string {
	if err == nil {
		return ""
	}
	s := buildsAsked.ReplaceAllString(err.Error(), "")
	s = digests.ReplaceAllString(s, "sha256:…")
	s = uploadStates.ReplaceAllString(s, "$1…")
	return identifiers.ReplaceAllString(s, "…")
}
