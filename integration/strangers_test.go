package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/cli/cli/config/types"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// A stranger is a build that solves the same steps as another one. Neither has received a
// result of the other. Whatever the stranger offers and does, the other build behaves as
// on upstream's daemon.

const (
	good = "good" // a value that servers accept
	bad  = "bad"  // one that they refuse
)

// strangerBed is what the tests of strangers share: services, and one daemon of each
// flavor.
type strangerBed struct {
	git       *testbed.GitServer // accepts the good token
	web       *testbed.HTTPServer
	basic     *testbed.Registry // accepts the good password
	tokens    *testbed.Registry // accepts the good password, with tokens
	anonymous *testbed.Registry
	root      llb.State
	locals    map[string]string // folders for src by value
	agents    map[string]string // sockets by value
	logins    map[string]string // configuration of docker by value
	contexts  string            // folder of Dockerfiles
	daemons   map[testbed.Flavor]served
	clients   map[testbed.Flavor]*client.Client
}

const rootImage = "/os:latest"

func newStrangerBed(t *testing.T, serve serveFunc) *strangerBed {
	t.Helper()
	bed := &strangerBed{
		locals: map[string]string{}, agents: map[string]string{}, logins: map[string]string{}, contexts: t.TempDir(),
		daemons: map[testbed.Flavor]served{}, clients: map[testbed.Flavor]*client.Client{},
	}
	var err error
	bed.git, err = testbed.StartGitServer(t.Context(), map[string]string{"file": "from git"}, testbed.Users{good: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bed.git.Close()) })
	bed.web, err = testbed.StartHTTPServer(os.DirFS(bed.contexts), testbed.Users{good: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bed.web.Close()) })
	require.NoError(t, os.WriteFile(filepath.Join(bed.contexts, "file"), []byte("from the web"), 0o600))
	needs := []service{webService(t, bed.git.URL), webService(t, bed.web.URL)}
	for r, opt := range map[**testbed.Registry]testbed.RegistryOptions{
		&bed.basic:     {Users: map[string]string{"user": good}},
		&bed.tokens:    {Users: map[string]string{"user": good}, Tokens: &testbed.TokenOptions{}},
		&bed.anonymous: {},
	} {
		*r, err = testbed.StartRegistry(t.Context(), opt)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, (*r).Close()) })
		needs = append(needs, registryService(*r))
	}
	for _, value := range []string{good, bad} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(value), 0o600))
		bed.locals[value] = dir
		agent, err := testbed.StartNamedAgent(value)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, agent.Close()) })
		bed.agents[value] = agent.Socket
		bed.logins[value] = dockerLogin(t, "user", value, bed.basic, bed.tokens)
	}
	bed.logins[""] = dockerLogin(t, "", "")

	for _, flavor := range testbed.Flavors {
		bed.daemons[flavor] = serve(t, flavor, needs...)
		bed.clients[flavor] = bed.daemons[flavor].client(t)
	}
	rootfs := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(rootfs))
	require.NoError(t, testbed.AddFirstKey(t.Context(), rootfs))
	push := bed.peer("push", good)
	push.locals["rootfs"] = rootfs
	for _, r := range []*testbed.Registry{bed.basic, bed.tokens, bed.anonymous} {
		pushState(t, bed.clients[testbed.Upstream], push, llb.Scratch().File(llb.Copy(llb.Local("rootfs"), "/", "/")), r.Host+rootImage)
	}
	bed.root = llb.Image(bed.anonymous.Host + rootImage)
	return bed
}

// pushState pushes a state as an image.
func pushState(t *testing.T, c *client.Client, p peer, st llb.State, image string) {
	t.Helper()
	opt, err := p.options()
	require.NoError(t, err)
	opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": image, "push": "true"}}}
	def, err := st.Marshal(t.Context(), llb.LocalUniqueID("testbed"))
	require.NoError(t, err)
	_, err = c.Build(t.Context(), opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		return gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	}, nil)
	require.NoError(t, err)
}

// peer returns a build that offers a value for every need, or nothing.
func (bed *strangerBed) peer(name, value string) peer {
	p := peer{name: name, locals: map[string]string{"dockerfile": bed.contexts}}
	if value == "" {
		p.docker = bed.logins[""]
		return p
	}
	p.agent = bed.agents[value]
	p.locals["src"] = bed.locals[value]
	p.secrets = map[string]string{"token": value, "GIT_AUTH_TOKEN": value, "HTTP_AUTH_TOKEN_127.0.0.1": value}
	p.docker = bed.logins[value]
	return p
}

// dockerLogin returns the configuration of a docker CLI that is logged in to the
// registries.
func dockerLogin(t *testing.T, user, password string, registries ...*testbed.Registry) string {
	t.Helper()
	dir := t.TempDir()
	for _, r := range registries {
		require.NoError(t, testbed.SaveLogin(dir, types.AuthConfig{ServerAddress: r.Host, Username: user, Password: password}))
	}
	return dir
}

// asked counts the secrets and logins that a peer is asked for.
func asked(p *peer, values map[string]string) *atomic.Int64 {
	var n atomic.Int64
	p.secrets, p.docker = nil, ""
	p.attach = []session.Attachable{
		secretsprovider.NewSecretProvider(countedSecrets{&n, values}),
		authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
			AuthConfigProvider: func(context.Context, string, []string, authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
				n.Add(1)
				return types.AuthConfig{Username: "user", Password: values["token"]}, nil
			},
		}),
	}
	return &n
}

type countedSecrets struct {
	n      *atomic.Int64
	values map[string]string
}

func (s countedSecrets) GetSecret(_ context.Context, id string) ([]byte, error) {
	s.n.Add(1)
	if v, ok := s.values[id]; ok {
		return []byte(v), nil
	}
	return nil, errors.WithStack(secrets.ErrNotFound)
}

// strangerNeed is a step that takes something from a session, and writes it to /seen.
type strangerNeed struct {
	name       string
	state      llb.State
	dockerfile string // with a stage base, instead of state
	want       string // what it sees with the good value
}

func (bed *strangerBed) needs(t *testing.T) []strangerNeed {
	t.Helper()
	const (
		readSecret = "cat /run/secrets/token > /seen"
		readEnv    = "echo -n $TOKEN > /seen"
		readAgent  = `if [ -S "$SSH_AUTH_SOCK" ]; then firstkey > /seen; else echo -n none > /seen; fi`
		readFile   = "cat /src/file > /seen"
	)
	env := []llb.SecretOption{llb.SecretID("token"), llb.SecretAsEnv(true)}
	needs := []strangerNeed{
		{name: "secret file", state: sh(bed.root, readSecret, secretFile("token"))},
		{name: "optional secret file", state: sh(bed.root, readSecret+" || echo -n none > /seen", secretFile("token", llb.SecretOptional))},
		{name: "secret env", state: sh(bed.root, readEnv, llb.AddSecret("TOKEN", env...))},
		{name: "optional secret env", state: sh(bed.root, readEnv, llb.AddSecret("TOKEN", append(env, llb.SecretOptional)...))},
		{name: "agent", state: sh(bed.root, readAgent, llb.AddSSHSocket())},
		{name: "optional agent", state: sh(bed.root, readAgent, llb.AddSSHSocket(llb.SSHOptional))},
		{name: "local folder", state: sh(bed.root, readFile, llb.AddMount("/src", llb.Local("src", llb.SharedKeyHint(identity.NewID()))))},
		{name: "git token", state: sh(bed.root, readFile, llb.AddMount("/src", llb.Git(bed.git.URL, "main"))), want: "from git"},
		{name: "HTTP token", state: sh(bed.root, readFile, llb.AddMount("/src", llb.HTTP(bed.web.URL+"/file", llb.Filename("file")))), want: "from the web"},
		{name: "registry login", state: sh(llb.Image(bed.basic.Host+rootImage, llb.ResolveModeForcePull), "echo -n pulled > /seen"), want: "pulled"},
		{name: "registry login with tokens", state: sh(llb.Image(bed.tokens.Host+rootImage, llb.ResolveModeForcePull), "echo -n pulled > /seen"), want: "pulled"},
		{name: "secret of a Dockerfile", dockerfile: fmt.Sprintf(
			"FROM %s%s AS base\nRUN --mount=type=secret,id=token,required=true %s # %s\nFROM base\nRUN true\n", bed.anonymous.Host, rootImage, readSecret, identity.NewID())},
	}
	for i, n := range needs {
		if n.want == "" {
			needs[i].want = good
		}
		if n.dockerfile != "" {
			require.NoError(t, os.WriteFile(filepath.Join(bed.contexts, n.name), []byte(n.dockerfile), 0o600))
		}
	}
	return needs
}

// solve solves the step lazily. A stranger solves two more results: one that it is based
// on, and the base of a Dockerfile.
func (n strangerNeed) solve(ctx context.Context, b peerBuild, stranger bool) (gateway.Reference, error) {
	if n.dockerfile == "" {
		if stranger {
			if _, err := b.solve(ctx, n.state.File(llb.Mkdir("/stranger", 0o755))); err != nil {
				return nil, err
			}
		}
		return b.solve(ctx, n.state)
	}
	opt := map[string]string{"filename": n.name}
	if stranger {
		opt["target"] = "base"
	}
	res, err := b.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: opt})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// outcome is the outcome of a build.
type outcome struct {
	seen string // what the step has seen, or the error
	took time.Duration
}

// TestStrangers runs builds beside a stranger, on both daemons.
func TestStrangers(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	bed := newStrangerBed(t, serveDaemon)
	t.Run("sessions", bed.testSessions)
	t.Run("cache import", bed.testCacheImport)
	t.Run("stale", bed.testStale)
	t.Run("buildx", bed.testBuildx)
}

// testSessions uses a stranger that has solved the same steps before, and does not
// evaluate them.
func (bed *strangerBed) testSessions(t *testing.T) {
	for _, tc := range []struct {
		name, own, stranger string
		fault               func(*proxy) // what happens to the client of the stranger
	}{
		{name: "has nothing", own: good},
		{name: "has another value", own: good, stranger: bad},
		{name: "hangs", own: good, stranger: bad, fault: (*proxy).stop},
		{name: "was killed just now", own: good, stranger: bad, fault: (*proxy).cut},
		{name: "has what the build has not", stranger: good},
	} {
		t.Run(tc.name, func(t *testing.T) {
			needs := bed.needs(t)
			outcomes := map[testbed.Flavor]map[string]outcome{}
			for _, flavor := range testbed.Flavors {
				// so that images and repositories are fetched again
				require.NoError(t, bed.clients[flavor].Prune(t.Context(), nil, client.PruneAll))
				outcomes[flavor] = bed.beside(t, flavor, bed.peer("own", tc.own), bed.peer("stranger", tc.stranger), tc.fault, needs)
			}
			for _, n := range needs {
				up, ours := outcomes[testbed.Upstream][n.name], outcomes[testbed.Graphload][n.name]
				if tc.own == good {
					require.Equal(t, n.want, up.seen, n.name)
				} else {
					require.NotEqual(t, n.want, up.seen, n.name)
				}
				require.Equal(t, up.seen, ours.seen, n.name)
				t.Logf("%s: %q, upstream %s, ours %s", n.name, up.seen, up.took.Round(time.Millisecond), ours.took.Round(time.Millisecond))
				// a daemon that waits for a disconnected session takes 5 s
				require.Less(t, ours.took, allowance(up.took, 2, 3*time.Second), n.name)
			}
		})
	}
}

// beside returns the outcomes of builds beside a stranger.
func (bed *strangerBed) beside(t *testing.T, flavor testbed.Flavor, own, stranger peer, fault func(*proxy), needs []strangerNeed) map[string]outcome {
	t.Helper()
	var asks *atomic.Int64
	if stranger.secrets != nil {
		asks = asked(&stranger, stranger.secrets)
	}
	proxy := newProxy(t, strings.TrimPrefix(bed.daemons[flavor].addr, "unix://"))
	c, err := bed.daemons[flavor].connect(t.Context(), "unix://"+proxy.addr)
	require.NoError(t, err)
	defer c.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	solved, leave, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- stranger.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			for _, n := range needs {
				if _, err := n.solve(ctx, b, true); err != nil {
					solved <- err
					return err
				}
			}
			solved <- nil
			<-leave
			return nil
		})
	}()
	select {
	case err := <-solved:
		require.NoError(t, err)
	case err := <-ended:
		require.NoError(t, err)
	}
	before := int64(0)
	if asks != nil {
		before = asks.Load() // solving a Dockerfile resolves its base
	}
	if fault != nil {
		fault(proxy)
	}

	outcomes := map[string]outcome{}
	var mu sync.Mutex
	var eg errgroup.Group
	eg.SetLimit(4)
	for _, n := range needs {
		eg.Go(func() error {
			var seen string
			var err error
			var took time.Duration
			// Upstream's daemon sometimes says "context canceled" where a client refuses a
			// local folder: the end of the stream cancels the transfer, which can return
			// before the error of the stream does.
			for range 5 {
				start := time.Now()
				seen, err = own.read(t.Context(), bed.clients[flavor], func(ctx context.Context, b peerBuild) (gateway.Reference, error) { return n.solve(ctx, b, false) })
				took = time.Since(start)
				if grpcerrors.Code(err) != codes.Canceled {
					break
				}
			}
			if err != nil {
				seen = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[n.name] = outcome{seen, took}
			return nil
		})
	}
	require.NoError(t, eg.Wait())
	if asks != nil {
		require.Equal(t, before, asks.Load(), "the stranger was asked")
	}
	close(leave)
	if fault == nil {
		require.NoError(t, <-ended)
	}
	return outcomes
}

// read solves and evaluates a step as a build of the peer, and returns what the step has
// seen.
func (p peer) read(ctx context.Context, c *client.Client, solve func(context.Context, peerBuild) (gateway.Reference, error)) (string, error) {
	var seen []byte
	var err error
	runErr := p.run(ctx, c, func(ctx context.Context, b peerBuild) error {
		var ref gateway.Reference
		if ref, err = solve(ctx, b); err == nil {
			seen, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen"})
		}
		return err
	})
	if err == nil { // errors of the build are wrapped in one of two ways
		err = runErr
	}
	return string(seen), err
}

// testCacheImport uses a stranger that imports the cache of an earlier build. The steps of
// another build run, because that build imports no cache.
func (bed *strangerBed) testCacheImport(t *testing.T) {
	st := sh(bed.root, "cat /proc/sys/kernel/random/uuid > /seen")
	def, err := st.Marshal(t.Context())
	require.NoError(t, err)
	solve := func(imports ...gateway.CacheOptionsEntry) func(context.Context, peerBuild) (gateway.Reference, error) {
		return func(ctx context.Context, b peerBuild) (gateway.Reference, error) {
			res, err := b.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), CacheImports: imports})
			if err != nil {
				return nil, err
			}
			return res.SingleRef()
		}
	}
	for _, flavor := range testbed.Flavors {
		c := bed.clients[flavor]
		attrs := map[string]string{"ref": bed.anonymous.Host + "/cache:" + string(flavor)}
		imports := gateway.CacheOptionsEntry{Type: "registry", Attrs: attrs}
		earlier, err := bed.peer("earlier", "").read(t.Context(), c, solve())
		require.NoError(t, err)
		opt, err := bed.peer("export", "").options()
		require.NoError(t, err)
		opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: attrs}}
		_, err = c.Solve(t.Context(), def, opt, nil)
		require.NoError(t, err)

		require.NoError(t, c.Prune(t.Context(), nil, client.PruneAll))
		require.NoError(t, bed.peer("stranger", "").run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
			if _, err := solve(imports)(ctx, b); err != nil {
				return err
			}
			own, err := bed.peer("own", "").read(ctx, c, solve())
			require.NotEqual(t, earlier, own, "the step was found in the cache that only the stranger imports")
			return err
		}))

		require.NoError(t, c.Prune(t.Context(), nil, client.PruneAll))
		own, err := bed.peer("own", "").read(t.Context(), c, solve(imports))
		require.NoError(t, err)
		require.Equal(t, earlier, own, "the cache of the earlier build cannot be imported")
	}
}

// activities are what a build does while other builds run. The build is based on base, and
// its own step takes a secret.
var activities = []string{"lazy", "waiting", "running", "failing", "just ended"}

// during calls f during the activity of a build on base, or right after a build that has
// just ended.
func (bed *strangerBed) during(t *testing.T, c *client.Client, activity string, p peer, base llb.State, f func()) {
	t.Helper()
	held := &heldSecrets{asked: make(chan struct{}, 1), release: make(chan struct{})}
	defer sync.OnceFunc(func() { close(held.release) })()
	p.attach = []session.Attachable{secretsprovider.NewSecretProvider(tenantSecrets{held, p.secrets})}
	p.secrets = nil
	require.NoError(t, p.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		switch activity {
		case "lazy":
			_, err := b.solve(ctx, sh(base, "true"))
			require.NoError(t, err)
			f()
		case "waiting":
			require.NoError(t, b.evaluate(ctx, sh(base, "true")))
			f()
		case "running":
			ref, err := b.solve(ctx, sh(base, "true", secretFile("held")))
			require.NoError(t, err)
			evaluated := make(chan error, 1)
			go func() { evaluated <- ref.Evaluate(ctx) }()
			select {
			case <-held.asked:
			case err := <-evaluated:
				require.NoError(t, err)
			}
			f()
			held.release <- struct{}{}
			require.NoError(t, <-evaluated)
		case "failing":
			require.ErrorContains(t, b.evaluate(ctx, sh(base, "exit 7")), "exit code: 7")
			f()
		case "just ended":
			return b.evaluate(ctx, sh(base, "true"))
		}
		return nil
	}))
	if activity == "just ended" {
		f()
	}
}

// testStale runs builds while another build with the same base is active. They run the
// steps that they must run again, see what has changed, and find the rest in the cache.
func (bed *strangerBed) testStale(t *testing.T) {
	web := t.TempDir()
	server, err := testbed.StartHTTPServer(os.DirFS(web), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	git, err := testbed.StartGitServer(t.Context(), nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Close()) })
	for _, d := range bed.daemons {
		d.reach(t, webService(t, server.URL), webService(t, git.URL))
	}
	src := t.TempDir()

	// what a case sees is compared with upstream, and with the expected value if the
	// other build is solved lazily
	const readFile, random = "cat /src/file > /seen", "cat /proc/sys/kernel/random/uuid > /seen"
	type step func(...llb.RunOption) llb.State
	newStep := func(st func() llb.State, script string, opts ...llb.RunOption) step {
		args := llb.Args([]string{"/bin/sh", "-c", script + " # " + identity.NewID()})
		return func(more ...llb.RunOption) llb.State {
			return st().Run(append(append([]llb.RunOption{args, llb.Network(llb.NetModeNone)}, opts...), more...)...).Root()
		}
	}
	root := func() llb.State { return bed.root }
	changing := func(source llb.State) func() step {
		return func() step { return newStep(root, readFile, llb.AddMount("/src", source)) }
	}
	for _, tc := range []struct {
		name   string
		base   func() step
		change func(content string) error // changes what base reads
		builds func(read func(p peer, st llb.State) string, base step) []string
		want   string // expected beside a lazy build
	}{
		{
			name: "without cache, three times",
			base: func() step { return newStep(root, random) },
			builds: func(read func(peer, llb.State) string, base step) (seen []string) {
				for range 3 {
					seen = append(seen, read(bed.peer("again", ""), base(llb.IgnoreCache)))
				}
				return pattern(seen)
			},
			want: "a b c",
		},
		{
			name: "without cache, another value of a secret",
			base: func() step { return newStep(root, "cat /run/secrets/token > /seen", secretFile("token")) },
			builds: func(read func(peer, llb.State) string, base step) []string {
				return []string{read(bed.peer("production", good), base(llb.IgnoreCache))}
			},
			want: good,
		},
		{
			name: "without cache once, then from the cache",
			base: func() step { return newStep(root, random) },
			builds: func(read func(peer, llb.State) string, base step) (seen []string) {
				child := newStep(func() llb.State { return base() }, random)
				for _, st := range []llb.State{child(), child(), base(llb.IgnoreCache), child(), child()} {
					seen = append(seen, read(bed.peer("child", ""), st))
				}
				return pattern(slices.Delete(seen, 2, 3))
			},
			want: "a a a a",
		},
		{
			name:   "file on the web",
			base:   changing(llb.HTTP(server.URL+"/file", llb.Filename("file"))),
			change: func(content string) error { return os.WriteFile(filepath.Join(web, "file"), []byte(content), 0o600) },
		},
		{
			name:   "git branch",
			base:   changing(llb.Git(git.URL, "main")),
			change: func(content string) error { return git.Push(t.Context(), map[string]string{"file": content}) },
		},
		{
			name:   "local folder",
			base:   changing(llb.Local("changing", llb.SharedKeyHint("changing"))),
			change: func(content string) error { return os.WriteFile(filepath.Join(src, "file"), []byte(content), 0o600) },
		},
	} {
		if tc.change != nil {
			tc.builds = func(read func(peer, llb.State) string, base step) []string {
				require.NoError(t, tc.change("new content"))
				p := bed.peer("next", "")
				p.locals["changing"] = src
				return []string{read(p, base())}
			}
			tc.want = "new content"
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, activity := range activities {
				base := tc.base()
				outcomes := map[testbed.Flavor]string{}
				for _, flavor := range testbed.Flavors {
					c := bed.clients[flavor]
					read := func(p peer, st llb.State) string {
						seen, err := p.read(t.Context(), c, func(ctx context.Context, b peerBuild) (gateway.Reference, error) { return b.solve(ctx, st) })
						require.NoError(t, err)
						return seen
					}
					if tc.change != nil {
						require.NoError(t, tc.change("old"))
					}
					active := bed.peer("active", bad)
					active.locals["changing"] = src
					bed.during(t, c, activity, active, base(), func() {
						outcomes[flavor] = strings.Join(tc.builds(read, base), " ")
					})
				}
				t.Logf("%s: %s", activity, outcomes[testbed.Upstream])
				if activity == "lazy" || activity == "just ended" {
					require.Equal(t, tc.want, outcomes[testbed.Upstream], activity)
				}
				require.Equal(t, outcomes[testbed.Upstream], outcomes[testbed.Graphload], activity)
			}
		})
	}
}

// testBuildx builds with buildx while a build and a bake with the same base are
// active.
func (bed *strangerBed) testBuildx(t *testing.T) {
	for _, version := range []string{"v0.29.1", "v0.38.2"} {
		t.Run(version, func(t *testing.T) {
			outcomes := map[testbed.Flavor]string{}
			for _, flavor := range testbed.Flavors {
				outcomes[flavor] = strings.Join(bed.besideBake(t, version, bed.daemons[flavor]), " ")
			}
			// children find base in the cache; without cache, base runs again
			require.Equal(t, "a a b c d a a", outcomes[testbed.Upstream])
			require.Equal(t, outcomes[testbed.Upstream], outcomes[testbed.Graphload])
		})
	}
}

func (bed *strangerBed) besideBake(t *testing.T, version string, d served) []string {
	t.Helper()
	b := d.builder(t, version)

	// the steps of the active builds wait for an answer
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	}))
	t.Cleanup(server.Close)
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // before the server ends

	dir := t.TempDir()
	const random = "cat /proc/sys/kernel/random/uuid > /seen"
	base := fmt.Sprintf("FROM %s%s AS base\nRUN %s # %s\n", bed.anonymous.Host, rootImage, random, identity.NewID())
	wait := fmt.Sprintf("RUN wget -q -O- %s # %s\n", server.URL, identity.NewID())
	for name, content := range map[string]string{
		"base":  base,
		"long":  base + "FROM base\n" + wait,
		"child": base + "FROM base\nRUN " + random + "\n",
		"bake":  "FROM base\nRUN true\n" + wait,
		"docker-bake.hcl": `
			target "base" { dockerfile = "base" }
			target "bake" {
				dockerfile = "bake"
				contexts   = { base = "target:base" }
			}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	var eg errgroup.Group
	defer eg.Wait()
	defer letGo()
	for _, args := range [][]string{{"build", "--file", "long", "."}, {"bake", "bake"}} {
		ended := make(chan error, 1)
		eg.Go(func() error {
			_, err := b.Output(t.Context(), dir, nil, args...)
			ended <- err
			return err
		})
		select {
		case <-arrived:
		case err := <-ended:
			require.FailNow(t, "a build did not wait", err)
		}
	}

	var seen []string
	for _, args := range [][]string{
		{"--file", "child"},
		{"--file", "child"},
		{"--file", "base", "--no-cache"},
		{"--file", "base", "--no-cache"},
		{"--file", "base", "--no-cache"},
		{"--file", "child"},
		{"--file", "child"},
	} {
		out := t.TempDir()
		_, err := b.Output(t.Context(), dir, nil, append(append([]string{"build", "--output", "type=local,dest=" + out}, args...), ".")...)
		require.NoError(t, err)
		dt, err := os.ReadFile(filepath.Join(out, "seen"))
		require.NoError(t, err)
		seen = append(seen, string(dt))
	}
	letGo()
	require.NoError(t, eg.Wait())
	return pattern(seen)
}

// pattern returns a letter for each value, the same for equal values.
func pattern(values []string) (out []string) {
	names := map[string]string{}
	for _, v := range values {
		if names[v] == "" {
			names[v] = string(rune('a' + len(names)))
		}
		out = append(out, names[v])
	}
	return out
}
