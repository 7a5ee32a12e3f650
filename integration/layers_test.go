package integration

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// layersBed has an image that only base may pull, for each kind of login, and a registry
// without logins.
type layersBed struct {
	client    *client.Client
	open      *testbed.Registry
	private   map[string]*testbed.Registry
	logins    map[string]string // logins of base, by kind
	anonymous string
	rootfs    string
	context   string // folder with a Dockerfile on the context "steps"
}

func newLayersBed(t *testing.T, flavor testbed.Flavor) *layersBed {
	t.Helper()
	requireTestbed(t)
	bed := &layersBed{private: map[string]*testbed.Registry{}, logins: map[string]string{}, anonymous: dockerLogin(t, "", ""), rootfs: t.TempDir(), context: t.TempDir()}
	require.NoError(t, testbed.WriteRootfs(bed.rootfs))
	require.NoError(t, os.WriteFile(filepath.Join(bed.context, "Dockerfile.steps"), []byte("FROM steps\n"), 0o600))
	bed.open = newRegistry(t, testbed.RegistryOptions{})
	config := bed.open.DaemonConfig()
	for kind, tokens := range map[string]*testbed.TokenOptions{"basic": nil, "tokens": {}} {
		r := newRegistry(t, testbed.RegistryOptions{Users: map[string]string{"base": good}, Tokens: tokens})
		bed.private[kind], bed.logins[kind] = r, dockerLogin(t, "base", good, r)
		config += r.DaemonConfig()
	}
	bed.client = newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config}))
	return bed
}

func newRegistry(t *testing.T, opt testbed.RegistryOptions) *testbed.Registry {
	t.Helper()
	r, err := testbed.StartRegistry(t.Context(), opt)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// lazyUse is what a client does with a result whose layers have not been fetched.
type lazyUse struct {
	name    string
	ref     func(context.Context, gateway.Client, gateway.Reference) error
	exports func(t *testing.T, opt *client.SolveOpt)
	cached  bool // exports the cache, not an image
	quick   bool // tried with every kind of login
}

// lazyUses are all uses of a result with the file /marker and /bin/sh.
func (bed *layersBed) lazyUses() []lazyUse {
	return []lazyUse{
		{name: "ReadFile", quick: true, ref: func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/marker"})
			if err == nil && string(dt) != "from base" {
				err = errors.Errorf("read %q", dt)
			}
			return err
		}},
		{name: "ReadDir", ref: func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			files, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/", IncludePattern: "marker"})
			if err == nil && len(files) != 1 {
				err = errors.Errorf("found %v", files)
			}
			return err
		}},
		{name: "StatFile", ref: func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			_, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/marker"})
			return err
		}},
		{name: "NewContainer", ref: func(ctx context.Context, gc gateway.Client, ref gateway.Reference) error {
			ctr, err := gc.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", Ref: ref}}})
			if err != nil {
				return err
			}
			defer ctr.Release(ctx)
			proc, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/bin/sh", "-c", `test "$(cat /marker)" = "from base"`}})
			if err != nil {
				return err
			}
			return proc.Wait()
		}},
		{name: "OCI export", quick: true, exports: exportTo(client.ExporterOCI, nil)},
		{name: "Docker export", exports: exportTo(client.ExporterDocker, nil)},
		{name: "tar export", exports: exportTo(client.ExporterTar, nil)},
		{name: "local export", exports: func(t *testing.T, opt *client.SolveOpt) {
			opt.Exports = []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: t.TempDir()}}
		}},
		{name: "image push", quick: true, exports: func(_ *testing.T, opt *client.SolveOpt) {
			opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": bed.open.Host + "/" + strings.ToLower(identity.NewID()), "push": "true"}}}
		}},
		{name: "registry cache", cached: true, quick: true, exports: func(_ *testing.T, opt *client.SolveOpt) {
			opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": bed.open.Host + "/cache/" + strings.ToLower(identity.NewID()), "mode": "max"}}}
		}},
		{name: "local cache", cached: true, exports: func(t *testing.T, opt *client.SolveOpt) {
			opt.CacheExports = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": t.TempDir(), "mode": "max"}}}
		}},
	}
}

// exportTo exports to a temporary file.
func exportTo(typ string, attrs map[string]string) func(*testing.T, *client.SolveOpt) {
	return func(_ *testing.T, opt *client.SolveOpt) {
		opt.Exports = []client.ExportEntry{{Type: typ, Attrs: attrs, Output: func(map[string]string) (io.WriteCloser, error) { return nopCloser{io.Discard}, nil }}}
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// use evaluates the ref that solve returns, calls evaluated, and uses the result.
func (u lazyUse) use(t *testing.T, p peer, c *client.Client, solve func(context.Context, peerBuild) (*gateway.Result, error), evaluated func() error) error {
	t.Helper()
	opt, err := p.options()
	require.NoError(t, err)
	if u.exports != nil {
		u.exports(t, &opt)
	}
	_, err = c.Build(t.Context(), opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		res, err := solve(ctx, peerBuild{gc})
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		if err := ref.Evaluate(ctx); err != nil {
			return nil, errors.Wrap(err, "evaluate")
		}
		if err := evaluated(); err != nil {
			return nil, err
		}
		if u.ref == nil {
			return res, nil
		}
		return gateway.NewResult(), u.ref(ctx, gc, ref)
	}, nil)
	return err
}

// onBase are the ways in which a child uses an image.
var onBase = []struct {
	name     string
	state    func(llb.State) llb.State
	input    bool // as an input of a Dockerfile
	unlazies bool // the evaluation needs the layers
}{
	{name: "the image", input: true, state: func(base llb.State) llb.State { return base }},
	{name: "a file on it", unlazies: true, state: func(base llb.State) llb.State { return base.File(llb.Mkfile("/added", 0o600, []byte("by the child"))) }},
	{name: "merged with a file", state: func(base llb.State) llb.State {
		return llb.Merge([]llb.State{base, llb.Scratch().File(llb.Mkfile("/added", 0o600, []byte("by the child")))})
	}},
	{name: "a step on it", unlazies: true, state: func(base llb.State) llb.State { return sh(base, "true") }},
}

// TestLazyLayers builds children on an image that only base may pull. The layers are
// fetched when the child needs them, in every way that a client can use the result.
func TestLazyLayers(t *testing.T) {
	t.Parallel()
	bed := newLayersBed(t, subject())
	for kind, registry := range bed.private {
		for _, on := range onBase {
			for _, u := range bed.lazyUses() {
				if u.cached && on.input {
					continue
				}
				for _, when := range []struct {
					name             string
					evaluated, ended bool
				}{
					{name: "child first"},
					{name: "base first", evaluated: true},
					{name: "base has ended", ended: true},
				} {
					if !*allCredentials && (on.unlazies || when.evaluated && u.name != "ReadFile" || kind == "basic" && !u.quick) {
						continue
					}
					t.Run(strings.Join([]string{kind, on.name, u.name, when.name}, "/"), func(t *testing.T) {
						err := bed.lazyLayers(t, registry, bed.logins[kind], bed.anonymous, on.state, on.input, u, when.evaluated, when.ended)
						if !when.ended || on.unlazies {
							require.NoError(t, err)
							return
						}
						require.ErrorContains(t, err, registry.Host)
						require.Regexp(t, "401 Unauthorized|authentication required|authorization failed", err.Error())
					})
				}
			}
		}
	}
}

// lazyLayers builds a child on a new image of base, which base has evaluated or not. The
// build of base can end after the child has evaluated.
func (bed *layersBed) lazyLayers(t *testing.T, registry *testbed.Registry, baseLogin, childLogin string, on func(llb.State) llb.State, input bool, u lazyUse, evaluated, ended bool) error {
	t.Helper()
	image, err := registry.Push(t.Context(), "base", "private/"+strings.ToLower(identity.NewID()), os.DirFS(bed.rootfs),
		fstest.MapFS{"marker": {Data: []byte("from base"), Mode: 0o644}}, fstest.MapFS{"random": {Data: []byte(rand.Text()), Mode: 0o644}})
	require.NoError(t, err)
	require.NoError(t, bed.client.Prune(t.Context(), nil, client.PruneAll))
	locals := map[string]string{"dockerfile": bed.context}
	base, child := peer{name: "base", docker: baseLogin, locals: locals}, peer{name: "child", docker: childLogin, locals: locals}
	state := llb.Image(image, llb.ResolveModeForcePull)

	leave, left, solved := make(chan struct{}), make(chan error, 1), make(chan error, 1)
	go func() {
		left <- base.run(t.Context(), bed.client, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, state)
			if err == nil && evaluated {
				err = ref.Evaluate(ctx)
			}
			solved <- err
			<-leave
			return nil
		})
	}()
	require.NoError(t, receive(t, solved))
	end := func() error {
		close(leave)
		return receive(t, left)
	}
	useErr := u.use(t, child, bed.client, func(ctx context.Context, b peerBuild) (*gateway.Result, error) {
		return b.result(ctx, on(state), input)
	}, func() error {
		if ended {
			return end()
		}
		return nil
	})
	if !ended {
		require.NoError(t, end())
	}
	return useErr
}

// result solves a state lazily; see solveWith.
func (b peerBuild) result(ctx context.Context, st llb.State, input bool) (*gateway.Result, error) {
	ref, err := b.solveWith(ctx, st, gateway.SolveRequest{}, input)
	if err != nil {
		return nil, err
	}
	res := gateway.NewResult()
	res.SetRef(ref)
	return res, nil
}
