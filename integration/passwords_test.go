package integration

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// loginsBed has registries with all kinds of logins, and both daemons.
type loginsBed struct {
	registries map[string]*testbed.Registry // by kind of login
	daemons    map[testbed.Flavor]*client.Client
	rootfs     string
	context    string
}

func newLoginsBed(t *testing.T) *loginsBed {
	t.Helper()
	requireTestbed(t)
	bed := &loginsBed{registries: map[string]*testbed.Registry{}, daemons: map[testbed.Flavor]*client.Client{}, rootfs: t.TempDir(), context: t.TempDir()}
	require.NoError(t, testbed.WriteRootfs(bed.rootfs))
	require.NoError(t, os.WriteFile(bed.context+"/Dockerfile.steps", []byte("FROM steps\n"), 0o600))
	config := ""
	for kind, tokens := range map[string]*testbed.TokenOptions{"basic": nil, "tokens": {}, "tokens with GET": {GETOnly: true}, "tokens that are denied": {Deny: true}} {
		r := newRegistry(t, testbed.RegistryOptions{
			Users: map[string]string{"user": good, other: good}, Tokens: tokens,
			Allow: func(user string, _ testbed.Access) bool { return user == "user" },
		})
		bed.registries[kind] = r
		config += r.DaemonConfig()
	}
	roots := t.TempDir()
	if *allCredentials { // so that the speed of the disk does not count
		require.NoError(t, unix.Mount("tmpfs", roots, "tmpfs", 0, "size=4g"))
		testbed.OnAbort(func() error { return unix.Unmount(roots, 0) })
		t.Cleanup(func() { require.NoError(t, unix.Unmount(roots, 0)) })
	}
	for _, flavor := range testbed.Flavors {
		d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config, Root: filepath.Join(roots, string(flavor)), Quiet: true})
		bed.daemons[flavor] = newClient(t, d)
	}
	return bed
}

// push pushes an image with a root filesystem and more layers.
func (bed *loginsBed) push(t *testing.T, r *testbed.Registry, layers int) llb.State {
	t.Helper()
	all := []fs.FS{os.DirFS(bed.rootfs)}
	for i := range layers {
		all = append(all, fstest.MapFS{fmt.Sprintf("layer%d", i): {Data: []byte(identity.NewID()), Mode: 0o644}})
	}
	image, err := r.Push(t.Context(), "user", "private/"+strings.ToLower(identity.NewID()), all...)
	require.NoError(t, err)
	return llb.Image(image, llb.ResolveModeForcePull)
}

// config returns the configuration of a docker CLI with a login.
func (bed *loginsBed) config(t *testing.T, r *testbed.Registry, login string) string {
	t.Helper()
	dir := t.TempDir()
	switch login {
	case "":
	case bad:
		return dockerLogin(t, "user", bad, r)
	case "identity":
		require.NoError(t, r.LoginIdentity(t.Context(), dir, "user"))
	default:
		require.NoError(t, r.Login(dir, login))
	}
	return dir
}

// identities reports if a registry has identity tokens.
func (bed *loginsBed) identities(kind string) bool {
	return kind != "basic" && kind != "tokens with GET"
}

// chain runs builds that are chained on each other and solve on(state). The last one
// evaluates and reads a file. chain returns the logins of the builds.
func (bed *loginsBed) chain(t *testing.T, c *client.Client, configs []string, state llb.State, use func(context.Context, gateway.Reference) error) (logins []*countedLogins, err error) {
	t.Helper()
	for _, config := range configs {
		logins = append(logins, newCountedLogins(t, config))
	}
	var build func(ctx context.Context, i int, st llb.State) error
	build = func(ctx context.Context, i int, st llb.State) error {
		p := peer{name: fmt.Sprintf("build %d", i), attach: []session.Attachable{logins[i]}}
		return p.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, st)
			if err != nil {
				return err
			}
			if i == len(configs)-1 {
				return use(ctx, ref)
			}
			return build(ctx, i+1, sh(st, "true"))
		})
	}
	return logins, build(t.Context(), 0, state)
}

// TestPasswordsStay runs chains of builds on an image with 18 layers, which takes 21
// requests. The daemon asks a client for its password only if upstream's daemon would ask
// it in an unchained build, and at most once.
func TestPasswordsStay(t *testing.T) {
	t.Parallel()
	bed := newLoginsBed(t)
	for kind, r := range bed.registries {
		if !*allCredentials && kind != "basic" && kind != "tokens" {
			continue
		}
		read := func(ctx context.Context, ref gateway.Reference) error {
			_, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/layer0"})
			return err
		}
		// true if upstream's daemon asks the client in an unchained build
		alone := map[string]bool{}
		for _, login := range []string{"user", "", bad, other, "identity"} {
			if login == "identity" && !bed.identities(kind) {
				continue
			}
			counted, _ := bed.chain(t, bed.daemons[testbed.Upstream], []string{bed.config(t, r, login)}, bed.push(t, r, 1), read)
			alone[login] = counted[0].passwords.Load() > 0
			require.Equal(t, alone[login], counted[0].sharing())
		}
		for _, logins := range [][]string{
			{"user", "user", "user"},
			{"user", "", ""},
			{"", "user", ""},
			{"", "", "user"},
			{bad, "", "user"},
			{other, "user", "user"},
			{"identity", "user", "user"},
			{bad, other, "identity"},
		} {
			if slices.Contains(logins, "identity") && !bed.identities(kind) {
				continue
			}
			t.Run(kind+"/"+strings.Join(logins, ","), func(t *testing.T) {
				var configs []string
				for _, login := range logins {
					configs = append(configs, bed.config(t, r, login))
				}
				state := bed.push(t, r, 17)
				r.Requests()
				counted, err := bed.chain(t, bed.daemons[testbed.Graphload], configs, state, read)
				require.NoError(t, err)
				requests := r.Requests()
				accepted := false
				for i, login := range logins {
					t.Logf("%q: asked %d times, %d passwords, alone on upstream: %t", login, counted[i].asked.Load(), counted[i].passwords.Load(), alone[login])
					require.LessOrEqual(t, counted[i].passwords.Load(), int64(1), "%q is asked once", login)
					if accepted || !alone[login] {
						require.Zero(t, counted[i].passwords.Load(), "%q is not asked", login)
						require.False(t, counted[i].sharing(), "%q shows that its password was shared", login)
					}
					if kind != "basic" {
						require.Zero(t, counted[i].asked.Load(), "%q fetches tokens itself", login)
					}
					accepted = accepted || login == "user" || login == "identity"
				}
				pulled := slices.DeleteFunc(requests, func(req testbed.Request) bool { return req.User != "user" || req.Scopes != nil })
				require.GreaterOrEqual(t, len(pulled), 20)
			})
		}
	}
}

// blobRequests counts requests by their purpose.
func blobRequests(requests []testbed.Request) map[string]int {
	counts := map[string]int{}
	for _, req := range requests {
		what := "other"
		for _, part := range []string{"manifests", "blobs", "token"} {
			if strings.Contains(req.Path, "/"+part) {
				what = part
			}
		}
		counts[fmt.Sprintf("%s %s %d", req.Method, what, req.Status)]++
	}
	return counts
}

// TestBlobRequests lets three chained builds with logins fetch blobs from a registry with
// tokens. That takes as many requests, and as long, as on upstream's daemon.
func TestBlobRequests(t *testing.T) {
	t.Parallel()
	bed := newLoginsBed(t)
	for _, kind := range []string{"tokens", "basic"} {
		r, blobs, rounds := bed.registries[kind], 20, 1
		if *allCredentials && kind == "tokens" {
			blobs, rounds = 500, 5
		}
		for _, tc := range []struct {
			name   string
			layers int
			images int
		}{
			{name: "exported", layers: blobs - 1, images: 1},
			{name: "pulled", layers: 19, images: (blobs + 19) / 20},
		} {
			t.Run(kind+"/"+tc.name, func(t *testing.T) {
				var images []llb.State
				for range tc.images {
					images = append(images, bed.push(t, r, tc.layers))
				}
				config := bed.config(t, r, "user")
				took, counts := map[testbed.Flavor][]time.Duration{}, map[testbed.Flavor]map[string]int{}
				for round := range rounds {
					for _, flavor := range testbed.Flavors {
						c := bed.daemons[flavor]
						require.NoError(t, c.Prune(t.Context(), nil, client.PruneAll))
						r.Requests()
						start := time.Now()
						if tc.name == "exported" {
							bed.export(t, c, config, images[0])
						} else {
							bed.mount(t, c, config, images)
						}
						took[flavor] = append(took[flavor], time.Since(start))
						if round == 0 {
							counts[flavor] = blobRequests(r.Requests())
						}
					}
				}
				t.Logf("requests: upstream %v, ours %v", counts[testbed.Upstream], counts[testbed.Graphload])
				require.Equal(t, counts[testbed.Upstream], counts[testbed.Graphload])
				up, ours := medianOf(took[testbed.Upstream]), medianOf(took[testbed.Graphload])
				t.Logf("upstream %s, ours %s, ratio %.3f", up, ours, ours.Seconds()/up.Seconds())
				if rounds > 1 {
					require.LessOrEqual(t, ours.Seconds()/up.Seconds(), 1.05)
				}
			})
		}
	}
}

// medianOf returns the median of durations.
func medianOf(took []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	return sorted[len(sorted)/2]
}

// export lets a build export an image of its base, which is chained on another build.
func (bed *loginsBed) export(t *testing.T, c *client.Client, config string, image llb.State) {
	t.Helper()
	locals := map[string]string{"dockerfile": bed.context}
	u := lazyUse{exports: exportTo(client.ExporterOCI, nil)}
	first, next := peer{name: "first", docker: config, locals: locals}, peer{name: "second", docker: config, locals: locals}
	require.NoError(t, first.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		if _, err := b.solve(ctx, image); err != nil {
			return err
		}
		return next.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			if _, err := b.solveWith(ctx, image, gateway.SolveRequest{}, true); err != nil {
				return err
			}
			return u.use(t, peer{name: "third", docker: config, locals: locals}, c, func(ctx context.Context, b peerBuild) (*gateway.Result, error) {
				return b.result(ctx, image, true)
			}, func() error { return nil })
		})
	}))
}

// mount lets a build evaluate a step of its base that mounts images.
func (bed *loginsBed) mount(t *testing.T, c *client.Client, config string, images []llb.State) {
	t.Helper()
	var mounts []llb.RunOption
	for i, image := range images {
		mounts = append(mounts, llb.AddMount(fmt.Sprintf("/mnt%d", i), image, llb.Readonly))
	}
	_, err := bed.chain(t, c, []string{config, config, config}, sh(images[0], "true", mounts...), func(ctx context.Context, ref gateway.Reference) error {
		return ref.Evaluate(ctx)
	})
	require.NoError(t, err)
}
