package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/docker/cli/cli/config/types"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// What builds offer, in addition to good and bad.
const (
	second = "second" // another value that servers accept
	other  = "other"  // a user without access to what the build needs
)

// matrixBed has servers of all kinds. Their users are good, second and other, with their
// names as passwords and tokens. Only the first two may access what is private.
type matrixBed struct {
	basic, tokens *testbed.Registry
	git           *testbed.GitServer
	ssh           *testbed.GitSSHServer
	web           *testbed.HTTPServer
	root          llb.State
	rootfs        string
	agents        map[string]string // sockets by value; nothing listens on "dead"
	logins        map[string]string // configuration of docker by value
	daemons       map[testbed.Flavor]*testbed.Daemon
	clients       map[testbed.Flavor]*client.Client
}

func newMatrixBed(t *testing.T) *matrixBed {
	t.Helper()
	requireTestbed(t)
	bed := &matrixBed{
		agents: map[string]string{}, logins: map[string]string{}, rootfs: t.TempDir(),
		daemons: map[testbed.Flavor]*testbed.Daemon{}, clients: map[testbed.Flavor]*client.Client{},
	}
	users := map[string]string{good: good, second: second, other: other}
	allow := func(user string, a testbed.Access) bool {
		return user == good || user == second && a.Action == "pull"
	}
	open := newRegistry(t, testbed.RegistryOptions{})
	bed.basic = newRegistry(t, testbed.RegistryOptions{Users: users, Allow: allow})
	bed.tokens = newRegistry(t, testbed.RegistryOptions{Users: users, Allow: allow, Tokens: &testbed.TokenOptions{}})
	var err error
	bed.git, err = testbed.StartGitServer(t.Context(), map[string]string{"file": "content"}, users)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bed.git.Close()) })
	bed.web, err = testbed.StartHTTPServer(fstest.MapFS{"file": {Data: []byte("content")}}, users)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bed.web.Close()) })

	keys := testbed.Users{}
	for _, value := range []string{good, second, other, bad, "dead"} {
		agent, err := testbed.StartSSHAgent(t.Context(), value)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, agent.Close()) })
		bed.agents[value] = agent.Socket
		switch value {
		case "dead":
			require.NoError(t, agent.Kill())
		case good, second, other:
			keys[agent.PublicKey] = value
		}
	}
	bed.ssh, err = bed.git.ServeSSH(t.Context(), keys)
	testutil.Require(t, err)
	t.Cleanup(func() { require.NoError(t, bed.ssh.Close()) })
	bed.logins[""] = dockerLogin(t, "", "")
	for _, value := range []string{good, second, other} {
		bed.logins[value] = dockerLogin(t, value, value, bed.basic, bed.tokens)
	}
	bed.logins[bad] = dockerLogin(t, good, bad, bed.basic, bed.tokens)

	require.NoError(t, testbed.WriteRootfs(bed.rootfs))
	require.NoError(t, testbed.AddFirstKey(t.Context(), bed.rootfs))
	root, err := open.Push(t.Context(), "", "os", os.DirFS(bed.rootfs))
	require.NoError(t, err)
	bed.root = llb.Image(root)
	for _, flavor := range testbed.Flavors {
		bed.daemons[flavor] = newDaemon(t, testbed.DaemonOptions{
			Flavor: flavor, Config: open.DaemonConfig() + bed.basic.DaemonConfig() + bed.tokens.DaemonConfig(), Quiet: !testing.Verbose(),
		})
		bed.clients[flavor] = newClient(t, bed.daemons[flavor])
	}
	return bed
}

// credential is something that a step of base needs from a session.
type credential struct {
	name string
	// step returns a new step that writes what it got to /seen.
	step func(t *testing.T) llb.State
	// seen returns what the step sees with an accepted value.
	seen func(value string) string
	// offer lets a peer offer a value.
	offer func(p *peer, value string)
	// refused lets a peer offer a value that is refused.
	refused func(p *peer)
	// hasUsers reports if the server has users without access to what the step needs.
	hasUsers bool
	// silence lets a peer offer something that never answers. It takes a function that is
	// called when the peer is asked.
	silence func(t *testing.T, p *peer, asked func())
	// requests returns the HTTP requests to the server since the last call, if there is a
	// server.
	requests func() []testbed.Request
}

func (bed *matrixBed) credentials() []credential {
	const readFile = "cat /src/file > /seen"
	content := func(string) string { return "content" }
	secretOf := func(id, prefix string) (offer func(p *peer, value string)) {
		return func(p *peer, value string) { p.secrets = map[string]string{id: prefix + value} }
	}
	silentSecrets := func(_ *testing.T, p *peer, asked func()) {
		p.secrets = nil
		p.attach = append(p.attach, secretsprovider.NewSecretProvider(secretFunc(func(ctx context.Context, _ string) ([]byte, error) {
			asked()
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})))
	}
	offerAgent := func(p *peer, value string) { p.agent = bed.agents[value] }
	silentAgent := func(t *testing.T, p *peer, asked func()) {
		p.agent = filepath.Join(t.TempDir(), "agent.sock")
		l, err := net.Listen("unix", p.agent) //nolint:noctx // closed at the end of the test
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { conn.Close() })
				asked()
			}
		}()
	}
	login := func(name string, r *testbed.Registry) credential {
		c := credential{
			name: name, seen: content, hasUsers: true, requests: r.Requests,
			step: func(t *testing.T) llb.State {
				image, err := r.Push(t.Context(), good, "private/"+strings.ToLower(identity.NewID()), os.DirFS(bed.rootfs),
					fstest.MapFS{"src": {Mode: os.ModeDir | 0o755}, "src/file": {Data: []byte("content"), Mode: 0o644}, "src/id": {Data: []byte(identity.NewID()), Mode: 0o644}})
				require.NoError(t, err)
				return sh(llb.Image(image, llb.ResolveModeForcePull), readFile)
			},
			offer: func(p *peer, value string) { p.docker = bed.logins[value] },
			silence: func(_ *testing.T, p *peer, asked func()) {
				p.docker = ""
				p.attach = append(p.attach, authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
					AuthConfigProvider: func(ctx context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
						if host == r.Host {
							asked()
							<-ctx.Done()
						}
						return types.AuthConfig{}, context.Cause(ctx)
					},
				}))
			},
		}
		c.refused = func(p *peer) { c.offer(p, bad) }
		return c
	}
	source := func(name string, requests func() []testbed.Request, offer func(*peer, string), silence func(*testing.T, *peer, func()), src func() llb.State) credential {
		return credential{
			name: name, seen: content, hasUsers: true, offer: offer, silence: silence, requests: requests,
			step:    func(*testing.T) llb.State { return sh(bed.root, readFile, llb.AddMount("/src", src())) },
			refused: func(p *peer) { offer(p, bad) },
		}
	}
	return []credential{
		{
			name: "secret",
			step: func(*testing.T) llb.State {
				return sh(bed.root, "cat /run/secrets/token > /seen", secretFile("token"))
			},
			seen:  func(value string) string { return value },
			offer: secretOf("token", ""),
			refused: func(p *peer) {
				p.secrets = nil
				p.attach = append(p.attach, secretsprovider.NewSecretProvider(secretFunc(func(context.Context, string) ([]byte, error) {
					return nil, errors.New("the vault is sealed")
				})))
			},
			silence: silentSecrets,
		},
		{
			name: "agent",
			step: func(*testing.T) llb.State {
				return sh(bed.root, "firstkey > /seen", llb.AddSSHSocket())
			},
			seen:    func(value string) string { return value },
			offer:   offerAgent,
			refused: func(p *peer) { offerAgent(p, "dead") },
			silence: silentAgent,
		},
		login("basic", bed.basic),
		login("tokens", bed.tokens),
		source("git token", bed.git.Requests, secretOf("GIT_AUTH_TOKEN", ""), silentSecrets, func() llb.State { return llb.Git(bed.git.Private(good, second), "main") }),
		source("git header", bed.git.Requests, secretOf("GIT_AUTH_HEADER", "Bearer "), silentSecrets, func() llb.State { return llb.Git(bed.git.Private(good, second), "main") }),
		source("git key", nil, offerAgent, silentAgent, func() llb.State {
			return llb.Git(bed.ssh.Private(good, second), "main", llb.KnownSSHHosts(bed.ssh.KnownHosts))
		}),
		source("HTTP token", bed.web.Requests, secretOf("HTTP_AUTH_TOKEN_127.0.0.1", ""), silentSecrets, func() llb.State {
			return llb.HTTP(bed.web.Private("file", good, second), llb.Filename("file"))
		}),
		source("HTTP header", bed.web.Requests, secretOf("header", "Bearer "), silentSecrets, func() llb.State {
			return llb.HTTP(bed.web.Private("file", good, second), llb.Filename("file"), llb.AuthHeaderSecret("header"))
		}),
	}
}

// secretFunc is a store of secrets.
type secretFunc func(ctx context.Context, id string) ([]byte, error)

// GetSecret implements secrets.SecretStore.
func (f secretFunc) GetSecret(ctx context.Context, id string) ([]byte, error) {
	return f(ctx, id)
}

// Faults of the credential of a build.
const (
	absent     = "absent"
	refused    = "refused"
	noAccess   = "without access" // the credential of a user without access
	otherValue = "other value"
	killed     = "killed" // the client is killed with SIGKILL
	// only for base, and the child is timed
	killedLate = "killed when the child has solved"
	cut        = "cut" // the connection of the client is cut
	cutAsked   = "cut when it is asked"
	silent     = "silent" // the client never answers
)

var faults = []string{absent, refused, noAccess, otherValue, killed, silent}

// positions are the builds with a fault.
var positions = []struct {
	name   string
	builds []string
}{
	{"base", []string{"base"}},
	{"child", []string{"child"}},
	{"both", []string{"base", "child"}},
	{"twin", []string{"twin"}},
	{"stranger", []string{"stranger"}},
}

// unserved are cells in which nothing serves the child, though base or the child itself
// could. docs/troubleshooting.md says so of agents.
var unserved = map[string]string{
	// What a step sends to a forwarded socket cannot be sent again to another. Upstream
	// serves these from the child.
	"agent/silent/base": "the step has the agent of base, which never answers",
	"agent/silent/twin": "the step has the agent of the twin, which never answers",
	// upstream waits for the child too
	"HTTP token/silent/child": "a header goes before a token, and base has none",
}

// TestCredentialMatrix has base, a child that is chained on it and evaluated first,
// and sometimes a build that was there before: a twin of base, as of another user
// who builds the same, on which the child is chained as well, or a stranger, whose
// results the child does not contain. One of them has something wrong with its credential for a step of
// base. Whatever builds on upstream's daemon, where nothing is lent, builds on this
// one too; and a child builds when base or the child itself can serve the step.
func TestCredentialMatrix(t *testing.T) {
	t.Parallel()
	bed := newMatrixBed(t)
	var table strings.Builder
	fmt.Fprintf(&table, "%-12s %-15s %-9s %-24s %s\n", "", "", "", "upstream", "ours")
	for _, c := range bed.credentials() {
		for _, fault := range faults {
			for _, pos := range positions {
				if fault == noAccess && !c.hasUsers || !*allCredentials && !quickCell(fault, pos.name) {
					continue
				}
				cell := strings.Join([]string{c.name, fault, pos.name}, "/")
				t.Run(cell, func(t *testing.T) {
					state := c.step(t)
					up := bed.cell(t, testbed.Upstream, c, state, fault, pos.builds)
					ours := bed.cell(t, testbed.Graphload, c, state, fault, pos.builds)
					fmt.Fprintf(&table, "%-12s %-15s %-9s %-24s %s\n", c.name, fault, pos.name, up, ours)
					t.Logf("upstream: %s\nours: %s", up.details(), ours.details())
					if reason, ok := unserved[cell]; ok {
						require.False(t, ours.child.built(), "served, unlike before: %s", reason)
						require.NoError(t, ours.later.err, "a later build")
						return
					}
					requireNoWorse(t, c, fault, pos.builds, up, ours)
				})
			}
		}
	}
	t.Logf("child, base, later build:\n%s", table.String())
}

// TestKilledInTime kills the client of base, or cuts its connection. The child has all that
// it needs, and builds as fast as on upstream's daemon.
func TestKilledInTime(t *testing.T) {
	bed := newMatrixBed(t)
	rounds := 5
	if *allCredentials {
		rounds = 10
	}
	for _, c := range bed.credentials() {
		for _, how := range []string{killed, killedLate, cut, cutAsked} {
			if !*allCredentials && c.name != "secret" && c.name != "tokens" {
				continue
			}
			t.Run(c.name+"/"+how, func(t *testing.T) {
				took := map[testbed.Flavor][]time.Duration{}
				for range rounds {
					for _, flavor := range testbed.Flavors {
						o := bed.cell(t, flavor, c, c.step(t), how, []string{"base"})
						require.NoError(t, o.child.err, flavor)
						took[flavor] = append(took[flavor], o.child.took)
					}
				}
				up, ours := medianOf(took[testbed.Upstream]), medianOf(took[testbed.Graphload])
				t.Logf("upstream %s %v, ours %s %v", up, took[testbed.Upstream], ours, took[testbed.Graphload])
				require.LessOrEqual(t, ours, allowance(up, 1.5, 500*time.Millisecond))
				// a session that is not connected is waited for in 5 s
				require.Less(t, slices.Max(took[testbed.Graphload]), allowance(slices.Max(took[testbed.Upstream]), 2, 4*time.Second))
			})
		}
	}
}

// TestAlone runs builds that chain on nothing, with good and bad credentials. Servers get
// the same requests as from upstream's daemon, and builds the same errors.
func TestAlone(t *testing.T) {
	t.Parallel()
	bed := newMatrixBed(t)
	for _, c := range bed.credentials() {
		for name, offer := range map[string]func(*peer){
			good: func(p *peer) { c.offer(p, good) }, absent: func(*peer) {}, refused: c.refused, noAccess: func(p *peer) { c.offer(p, other) },
		} {
			if name == noAccess && !c.hasUsers {
				continue
			}
			t.Run(c.name+"/"+name, func(t *testing.T) {
				state := c.step(t)
				outcomes, requests := map[testbed.Flavor]string{}, map[testbed.Flavor][]string{}
				for _, flavor := range testbed.Flavors {
					p := peer{name: "alone", secrets: map[string]string{}, docker: bed.logins[""]}
					offer(&p)
					if c.requests != nil {
						c.requests()
					}
					seen, err := p.read(t.Context(), bed.clients[flavor], func(ctx context.Context, b peerBuild) (gateway.Reference, error) { return b.solve(ctx, state) })
					outcomes[flavor] = seen + sameError(err)
					if c.requests != nil {
						for _, req := range c.requests() {
							requests[flavor] = append(requests[flavor], fmt.Sprintf("%s %s %d %s", req.Method, req.Path, req.Status, req.User))
						}
						slices.Sort(requests[flavor]) // blobs are fetched concurrently
					}
				}
				t.Logf("upstream: %s\n%s", outcomes[testbed.Upstream], strings.Join(requests[testbed.Upstream], "\n"))
				require.Equal(t, outcomes[testbed.Upstream], outcomes[testbed.Graphload])
				require.Equal(t, requests[testbed.Upstream], requests[testbed.Graphload])
			})
		}
	}
}

// quickCell reports if a cell is part of every run of the tests.
func quickCell(fault, position string) bool {
	switch fault {
	case absent:
		return position == "base" || position == "both"
	case refused:
		return position == "base" || position == "both" || position == "twin"
	case noAccess, killed, otherValue:
		return position == "base"
	}
	return false
}

// requireNoWorse compares a cell with the same cell on upstream's daemon.
func requireNoWorse(t *testing.T, c credential, fault string, faulty []string, up, ours cellOutcome) {
	t.Helper()
	for _, of := range []struct {
		name     string
		up, ours cellResult
	}{{"child", up.child, ours.child}, {"base", up.base, ours.base}, {"later", up.later, ours.later}} {
		if of.name == "base" && fault == silent && slices.Contains(faulty, "base") {
			continue // the test ended it for the child, which upstream's daemon serves alone
		}
		if of.up.built() {
			require.True(t, of.ours.built(), "%s builds on upstream's daemon: %s", of.name, of.ours.err)
		}
	}
	value := func(build string) string { // returns the value that serves the step, or ""
		switch {
		case !slices.Contains(faulty, build):
			return good
		case fault == otherValue:
			return second
		}
		return ""
	}
	if base, child := value("base"), value("child"); !(fault == killed && child == "") && base+child != "" {
		if base == "" {
			base = child
		}
		if fault == otherValue && slices.Contains(faulty, "twin") {
			base = second // the value of the earlier base
		}
		require.NoError(t, ours.child.err, "base or the child can serve the step")
		require.Equal(t, c.seen(base), ours.child.seen)
	}
	if !up.child.built() && !ours.child.built() && fault != killed && fault != silent {
		require.Equal(t, sameError(up.child.err), sameError(ours.child.err))
		if !strings.Contains(ours.child.err.Error(), "exit code") { // of a step with an agent that is dead
			require.ErrorContains(t, ours.child.err, "(2 builds were asked)")
		}
	}
	require.NoError(t, ours.later.err, "a later build")
}

// cellOutcome has the outcomes of the builds of a cell.
type cellOutcome struct {
	child, base, later cellResult
}

// cellResult is what a build has seen, or its error.
type cellResult struct {
	seen string
	err  error
	took time.Duration
}

func (r cellResult) built() bool {
	return r.err == nil
}

func (r cellResult) String() string {
	switch {
	case r.err == nil:
		return "builds"
	case errors.Is(r.err, errKilled), errors.Is(r.err, errSilent):
		return r.err.Error()
	}
	return "fails"
}

func (o cellOutcome) String() string {
	return fmt.Sprintf("%s, %s, %s", o.child, o.base, o.later)
}

func (o cellOutcome) details() string {
	return fmt.Sprintf("child %q %v in %s, base %q %v, later %q %v", o.child.seen, o.child.err, o.child.took.Round(time.Millisecond), o.base.seen, o.base.err, o.later.seen, o.later.err)
}

var (
	errKilled = errors.New("killed")
	errSilent = errors.New("silent")
)

// cell builds a step for a credential on a daemon.
func (bed *matrixBed) cell(t *testing.T, flavor testbed.Flavor, c credential, state llb.State, fault string, faulty []string) (o cellOutcome) {
	t.Helper()
	cl, addr := bed.clients[flavor], bed.daemons[flavor].Addr
	newBuild := func(name string) *cellBuild {
		b := &cellBuild{client: cl, peer: peer{name: name, secrets: map[string]string{}, docker: bed.logins[""]}}
		b.ctx, b.cancel = context.WithCancelCause(t.Context())
		t.Cleanup(func() { b.cancel(nil) })
		if !slices.Contains(faulty, name) {
			c.offer(&b.peer, good)
			return b
		}
		switch fault {
		case refused:
			c.refused(&b.peer)
		case noAccess:
			c.offer(&b.peer, other)
		case otherValue:
			c.offer(&b.peer, second)
		case killed, killedLate:
			c.offer(&b.peer, good)
			b.killed = true
		case cut, cutAsked:
			b.proxy = newProxy(t, strings.TrimPrefix(addr, "unix://"))
			var err error
			b.client, err = client.New(t.Context(), "unix://"+b.proxy.addr)
			require.NoError(t, err)
			t.Cleanup(func() { b.client.Close() })
			c.offer(&b.peer, good)
			if fault == cutAsked {
				c.silence(t, &b.peer, b.proxy.cut)
			}
		case silent:
			// the client ends the build when it is asked
			c.silence(t, &b.peer, func() { b.cancel(errSilent) })
		}
		return b
	}

	for name, st := range map[string]llb.State{"twin": state, "stranger": state.File(llb.Mkdir("/stranger", 0o755))} {
		if slices.Contains(faulty, name) {
			b := newBuild(name)
			b.start(t, addr, st)
			defer b.end(t)
			if b.killed {
				b.process.kill(t)
			}
		}
	}
	base := newBuild("base")
	base.start(t, addr, state)
	var childSolved func()
	switch {
	case fault == killed && base.killed:
		base.process.kill(t)
	case fault == killedLate:
		childSolved = func() { base.process.signal(t, syscall.SIGKILL) }
	case fault == cut:
		base.proxy.cut()
	}
	child := newBuild("child")
	if child.killed {
		child.startProcess(t, addr, sh(state, "true"), true)
		child.process.kill(t)
		o.child.err = errKilled
	} else {
		o.child = child.read(sh(state, "true"), childSolved)
	}
	o.base = base.evaluate(t)
	base.end(t)
	// a build that joins steps of canceled builds can be canceled too
	for range 20 {
		o.later = newBuild("later").read(sh(state, "true"), nil)
		if code := grpcerrors.Code(o.later.err); code != codes.Canceled && code != codes.Unavailable {
			break
		}
	}
	return o
}

// cellBuild is a build of a cell.
type cellBuild struct {
	peer
	client *client.Client
	killed bool   // the client is, or will be
	proxy  *proxy // the proxy that is cut

	process *clientProcess // the process that is killed

	ctx    context.Context //nolint:containedctx // the provider cancels the build with it
	cancel context.CancelCauseFunc

	eval  chan struct{}
	seen  chan cellResult
	leave chan struct{}
	ended chan error
}

// read solves a state, calls solved if it is not nil, and evaluates.
func (b *cellBuild) read(st llb.State, solved func()) cellResult {
	start := time.Now()
	seen, err := b.peer.read(b.ctx, b.client, func(ctx context.Context, b peerBuild) (gateway.Reference, error) {
		ref, err := b.solve(ctx, st)
		if solved != nil {
			solved()
		}
		return ref, err
	})
	return cellResult{seen, b.cause(err), time.Since(start)}
}

// cause returns why the client ended the build, or err.
func (b *cellBuild) cause(err error) error {
	if cause := context.Cause(b.ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// start solves a state lazily, and returns when that is done.
func (b *cellBuild) start(t *testing.T, addr string, st llb.State) {
	t.Helper()
	if b.killed {
		b.startProcess(t, addr, st, false)
		return
	}
	b.eval, b.seen, b.leave, b.ended = make(chan struct{}), make(chan cellResult, 1), make(chan struct{}), make(chan error, 1)
	solved := make(chan error, 1)
	go func() {
		b.ended <- b.peer.run(b.ctx, b.client, func(ctx context.Context, pb peerBuild) error {
			ref, err := pb.solve(ctx, st)
			solved <- err
			if err != nil {
				return err
			}
			select {
			case <-b.eval:
				dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/seen"})
				b.seen <- cellResult{seen: string(dt), err: b.cause(err)}
			case <-b.leave:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			<-b.leave
			return nil
		})
	}()
	require.NoError(t, receive(t, solved))
}

// startProcess solves a state in a process.
func (b *cellBuild) startProcess(t *testing.T, addr string, st llb.State, evaluate bool) {
	t.Helper()
	b.process = startClient(t, processBuild{
		Addr: addr, Name: b.name, Secrets: b.secrets, Agent: b.agent, Docker: b.docker, Definition: marshal(t, st), Evaluate: evaluate,
	})
	b.process.expect(t, "solved")
}

// evaluate reads what the state of start has seen, unless the build has ended.
func (b *cellBuild) evaluate(t *testing.T) cellResult {
	t.Helper()
	if b.killed || b.proxy != nil {
		return cellResult{err: errKilled}
	}
	select {
	case b.eval <- struct{}{}:
	case <-b.ctx.Done():
		return cellResult{err: context.Cause(b.ctx)}
	}
	select {
	case r := <-b.seen:
		return r
	case <-b.ctx.Done():
		return cellResult{err: context.Cause(b.ctx)}
	case <-time.After(time.Minute):
		require.FailNow(t, "hangs")
		return cellResult{}
	}
}

// end ends the build.
func (b *cellBuild) end(t *testing.T) {
	t.Helper()
	if b.killed {
		return
	}
	if b.proxy != nil {
		b.cancel(errKilled)
	}
	close(b.leave)
	receive(t, b.ended)
}
