package integration

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestTenants runs builds of two users of one daemon that do not know of each other. It
// shows what one gets from the other, on upstream's daemon and on this one.
// docs/security.md refers to it.
func TestTenants(t *testing.T) {
	const value, other = "secret-of-alice", "secret-of-mallory"
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	step := func() llb.State {
		return sh(root, `cat /run/secrets/token > /copy`, secretFile("token"))
	}
	alice := peer{name: "alice", secrets: map[string]string{"token": value}, locals: locals}
	mallory := peer{name: "mallory", secrets: map[string]string{}, locals: locals}
	liar := peer{name: "mallory", secrets: map[string]string{"token": other}, locals: locals}

	is := func(st llb.State) llb.State { return st }
	on := func(st llb.State) llb.State { return st.File(llb.Mkdir("/on", 0o755)) }

	// read evaluates a state, and returns what the step has copied
	read := func(ctx context.Context, b peerBuild, st llb.State) (string, error) {
		ref, err := b.solve(ctx, st)
		if err != nil {
			return "", err
		}
		dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/copy"})
		return string(dt), err
	}

	for _, flavor := range testbed.Flavors {
		d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor})
		c := newClient(t, d)
		evaluated := func(st llb.State) {
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				got, err := read(ctx, b, st)
				require.Equal(t, value, got)
				return err
			}))
		}

		// secrets are not in cache keys: a client that sends the same step gets the
		// result, on any BuildKit
		t.Run(string(flavor)+"/identical step after it ran", func(t *testing.T) {
			st := step()
			evaluated(st)
			require.NoError(t, mallory.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				got, err := read(ctx, b, st)
				require.Equal(t, value, got)
				return err
			}))
		})

		// a build that solves the same as alice gets nothing from her; a build that has
		// her result gets what she offers
		for _, chained := range []bool{false, true} {
			name, of := "identical step while it is solved lazily", is
			if chained {
				name, of = "step on her result while it is solved lazily", on
			}
			t.Run(string(flavor)+"/"+name, func(t *testing.T) {
				st := step()
				require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
					if _, err := b.solve(ctx, st); err != nil {
						return err
					}
					err := mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
						got, err := read(ctx, b, of(st))
						if err == nil {
							require.Equal(t, value, got)
						}
						return err
					})
					if chained && flavor == testbed.Graphload {
						require.NoError(t, err, "alice serves her own step")
					} else {
						require.ErrorContains(t, err, "secret token: not found")
					}
					return nil
				}))
			})
		}

		t.Run(string(flavor)+"/another step with the same id", func(t *testing.T) {
			st := step()
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, st); err != nil {
					return err
				}
				err := mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
					_, err := read(ctx, b, sh(on(st), `cat /run/secrets/token > /copy`, secretFile("token")))
					return err
				})
				require.ErrorContains(t, err, "secret token: not found")
				return nil
			}))
		})

		t.Run(string(flavor)+"/after the build has ended", func(t *testing.T) {
			st := step()
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				_, err := b.solve(ctx, st)
				return err
			}))
			err := mallory.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				_, err := read(ctx, b, on(st))
				return err
			})
			require.ErrorContains(t, err, "secret token: not found")
		})

		// a definition that a policy has changed is another step
		t.Run(string(flavor)+"/other policy", func(t *testing.T) {
			st := step()
			converted := peer{name: "alice", secrets: alice.secrets, locals: map[string]string{"rootfs": dir, "other": dir}}
			require.NoError(t, converted.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				def, err := st.Marshal(ctx, llb.LocalUniqueID("testbed"))
				if err != nil {
					return err
				}
				if _, err := b.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), SourcePolicies: []*spb.Policy{{Rules: []*spb.Rule{{
					Action:   spb.PolicyAction_CONVERT,
					Selector: &spb.Selector{Identifier: "local://rootfs"},
					Updates:  &spb.Update{Identifier: "local://other"},
				}}}}}); err != nil {
					return err
				}
				err = mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
					_, err := read(ctx, b, on(st))
					return err
				})
				require.ErrorContains(t, err, "secret token: not found")
				return nil
			}))
		})

		t.Run(string(flavor)+"/debug endpoints", func(t *testing.T) {
			st := step()
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, st); err != nil {
					return err
				}
				requireNotShown(t, d, value)
				return nil
			}))
			evaluated(st)
			requireNotShown(t, d, value)
			require.NotContains(t, d.LogTail(-1), value)
		})

		t.Run(string(flavor)+"/debug endpoints are open", func(t *testing.T) {
			const argument = "password-in-an-argument"
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				ref, err := b.solve(ctx, sh(root, "echo "+argument))
				if err != nil {
					return err
				}
				if flavor == testbed.Graphload {
					for _, accept := range graphForms {
						require.Contains(t, getDebug(t, d, "/debug/graph", accept), argument)
					}
				}
				return ref.Evaluate(ctx)
			}))
			for url, want := range map[string]string{
				"/debug/pprof/cmdline":      d.DebugAddr,
				"/debug/pprof/heap?debug=1": "heap profile: ",
				"/debug/cache/store":        "Digest: sha256:",
				"/debug/gc":                 "",
			} {
				require.Contains(t, getDebug(t, d, url, ""), want, url)
			}
			requireCompaction(t, d)
		})

		t.Run(string(flavor)+"/trusted clients", func(t *testing.T) {
			requireTrusted(t, d, c, alice, step)
		})

		t.Run(string(flavor)+"/root of the machine", func(t *testing.T) {
			ids, err := os.ReadFile("/proc/self/uid_map")
			require.NoError(t, err)
			require.NoError(t, mallory.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				got, err := read(ctx, b, sh(root, `busybox id -u > /copy; cat /proc/self/uid_map >> /copy`))
				require.Equal(t, "0\n"+string(ids), got)
				return err
			}))
		})

		// the input of the step waits until both builds have requested it
		t.Run(string(flavor)+"/identical step at the same time", func(t *testing.T) {
			for name, offers := range map[string][2]map[string]string{
				"only one of them has it": {nil, {"token": other}},
				"both have it":            {{"token": value}, {"token": other}},
			} {
				held := &heldSecrets{asked: make(chan struct{}, 2), release: make(chan struct{})}
				input := sh(root, "true", secretFile("held"))
				st := sh(input, `cat /run/secrets/token /proc/sys/kernel/random/uuid > /copy`, secretFile("token"), llb.WithCustomName("shared step"))
				seen := make([]string, 2)
				eg, ctx := errgroup.WithContext(t.Context())
				for i, offer := range offers {
					p := peer{name: strconv.Itoa(i), locals: locals, attach: []session.Attachable{secretsprovider.NewSecretProvider(tenantSecrets{held, offer})}}
					loaded := shows(&p, "shared step")
					eg.Go(func() error {
						return p.run(ctx, c, func(ctx context.Context, b peerBuild) (err error) {
							seen[i], err = read(ctx, b, st)
							return err
						})
					})
					select {
					case <-loaded:
					case <-ctx.Done():
						require.NoError(t, eg.Wait(), name)
					}
				}
				close(held.release)
				require.NoError(t, eg.Wait(), name)
				require.Equal(t, seen[0], seen[1], "%s: the step runs once", name)
				if !strings.HasPrefix(seen[0], value) || offers[0] == nil {
					require.True(t, strings.HasPrefix(seen[0], other), "%s: %s", name, seen[0])
				}
			}
		})

		// on any daemon, the cache has what another build has evaluated, with its value;
		// what that build has only solved changes nothing
		t.Run(string(flavor)+"/identical step of another build before", func(t *testing.T) {
			for _, tc := range []struct {
				name      string
				evaluated bool
				opts      []llb.RunOption
				want      string
			}{
				{"solved lazily", false, nil, value},
				{"solved lazily, without cache", false, []llb.RunOption{llb.IgnoreCache}, value},
				{"evaluated", true, nil, other},
				{"evaluated, without cache", true, []llb.RunOption{llb.IgnoreCache}, value},
			} {
				args := llb.Args([]string{"/bin/sh", "-c", "cat /run/secrets/token > /copy # " + identity.NewID()})
				of := func(opts ...llb.RunOption) llb.State {
					return root.Run(append([]llb.RunOption{args, llb.Network(llb.NetModeNone), secretFile("token")}, opts...)...).Root()
				}
				require.NoError(t, liar.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
					ref, err := b.solve(ctx, of())
					if err != nil {
						return err
					}
					if tc.evaluated {
						if err := ref.Evaluate(ctx); err != nil {
							return err
						}
					}
					return alice.run(ctx, c, func(ctx context.Context, b peerBuild) error {
						got, err := read(ctx, b, of(tc.opts...))
						require.Equal(t, tc.want, got, tc.name)
						return err
					})
				}))
			}
		})

		// a build that chains on results of two others gets the value of the one that
		// solved the step first
		t.Run(string(flavor)+"/identical step of two bases", func(t *testing.T) {
			if flavor != testbed.Graphload {
				t.Skip("upstream's daemon has no bases")
			}
			for name, bases := range map[string][2]peer{"alice was first": {alice, liar}, "alice was second": {liar, alice}} {
				st := step()
				require.NoError(t, bases[0].run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
					if _, err := b.solve(ctx, st); err != nil {
						return err
					}
					return bases[1].run(ctx, c, func(ctx context.Context, b peerBuild) error {
						if _, err := b.solve(ctx, st); err != nil {
							return err
						}
						return mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
							got, err := read(ctx, b, on(st))
							require.Equal(t, bases[0].secrets["token"], got, name)
							return err
						})
					})
				}), name)
			}
		})

		t.Run(string(flavor)+"/no limit for a client", func(t *testing.T) {
			const solves, steps = 20, 1000
			require.NoError(t, mallory.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				for i := range solves {
					st := llb.Scratch()
					for n := range steps {
						st = st.File(llb.Mkfile("/file", 0o600, []byte(strconv.Itoa(i*steps+n))))
					}
					if _, err := b.solve(ctx, st); err != nil {
						return err
					}
				}
				if flavor == testbed.Graphload {
					require.InDelta(t, solves*steps, getMetrics(t, d)["buildkit_graphload_vertices_owned"], 0)
				}
				return nil
			}))
		})
	}
}

// tenantSecrets holds back the secret "held", and returns others at once.
type tenantSecrets struct {
	held   *heldSecrets
	others map[string]string
}

func (s tenantSecrets) GetSecret(ctx context.Context, id string) ([]byte, error) {
	if id == "held" {
		return s.held.GetSecret(ctx, id)
	}
	if v, ok := s.others[id]; ok {
		return []byte(v), nil
	}
	return nil, errors.WithStack(secrets.ErrNotFound)
}

// shows returns a channel that is closed when the progress of the peer, which is about to
// run, has a step. From then on, the peer's build is one of those that build the step.
func shows(p *peer, name string) <-chan struct{} {
	ch := make(chan struct{})
	found := sync.OnceFunc(func() { close(ch) })
	updates := make(chan *client.SolveStatus)
	p.status = updates
	go func() {
		for st := range updates {
			if slices.ContainsFunc(st.Vertexes, func(v *client.Vertex) bool { return v.Name == name }) {
				found()
			}
		}
	}()
	return ch
}

// requireTrusted lets a client do to a build of alice what every client that can connect
// may do.
func requireTrusted(t *testing.T, d *testbed.Daemon, c *client.Client, alice peer, step func() llb.State) {
	t.Helper()
	conn, err := grpc.NewClient(d.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	history := func(active bool) (refs []string) {
		stream, err := c.ControlClient().ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{ActiveOnly: active, EarlyExit: true})
		require.NoError(t, err)
		for {
			ev, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return refs
			}
			require.NoError(t, err)
			refs = append(refs, ev.Record.Ref)
		}
	}

	solved, leave, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
			_, err := b.solve(ctx, step())
			solved <- err
			<-leave
			return nil
		})
	}()
	require.NoError(t, <-solved)
	active := history(true)
	require.Len(t, active, 1, "builds of others are listed")

	// a step that another client adds to her build gets what she offers
	ctx := buildid.AppendToOutgoingContext(t.Context(), active[0])
	bridge := gatewaypb.NewLLBBridgeClient(conn)
	def, err := step().Marshal(ctx, llb.LocalUniqueID("testbed"))
	require.NoError(t, err)
	res, err := bridge.Solve(ctx, &gatewaypb.SolveRequest{Definition: def.ToPB(), AllowResultReturn: true, AllowResultArrayRef: true})
	require.NoError(t, err)
	file, err := bridge.ReadFile(ctx, &gatewaypb.ReadFileRequest{Ref: res.GetResult().GetRef().GetId(), FilePath: "/copy"})
	require.NoError(t, err)
	require.Equal(t, alice.secrets["token"], string(file.GetData()))

	_, err = bridge.Return(ctx, &gatewaypb.ReturnRequest{Error: status.New(codes.Aborted, "ended by another client").Proto()})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(history(true)) == 0 }, hangTimeout, 10*time.Millisecond)
	close(leave)
	require.Error(t, <-ended)

	require.Equal(t, "ended by another client", historyRecord(t, c, active[0]).GetError().GetMessage())
	_, err = c.ControlClient().UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: active[0], Delete: true})
	require.NoError(t, err)
	require.NotContains(t, history(false), active[0])

	records, err := c.DiskUsage(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, records)
	require.NoError(t, c.Prune(t.Context(), nil, client.PruneAll))
	records, err = c.DiskUsage(t.Context())
	require.NoError(t, err)
	require.Empty(t, records)
}

// requireCompaction lets the daemon compact a database, if the release supports it.
func requireCompaction(t *testing.T, d *testbed.Daemon) {
	t.Helper()
	database := url.QueryEscape(filepath.Join(d.Root, "cache.db"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://debug/debug/compaction?database="+database, nil)
	require.NoError(t, err)
	resp, err := debugClient(t, d).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	// the rest of the answer arrives when the daemon is idle
	first, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	if resp.StatusCode == http.StatusNotFound {
		require.Equal(t, "404 page not found\n", first)
		return
	}
	require.Equal(t, http.StatusOK, resp.StatusCode, first)
	require.Contains(t, first, "manual attempt requested")
}

// TestTrustedClientEndsDaemon lets a client that may connect send a message that crashes
// upstream's daemon.
func TestTrustedClientEndsDaemon(t *testing.T) {
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor})
			conn, err := grpc.NewClient(d.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			defer conn.Close()
			require.Error(t, call(t, conn, "/containerd.services.content.v1.Content/Update", &emptypb.Empty{}))
			select {
			case <-d.Done():
			case <-time.After(hangTimeout):
				t.Fatal("it goes on: docs/security.md says that it does not")
			}
		})
	}
}

// debugURLs are the debug handlers that show the state of the daemon.
var debugURLs = []string{
	"/debug/vars", "/debug/requests?fam=&b=0", "/debug/events", "/debug/cache/all", "/debug/cache/store", "/metrics",
	"/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1",
}

// graphForms are the content types of /debug/graph.
var graphForms = []string{"application/json", "text/html"}

// requireNotShown fails if a debug handler shows a value.
func requireNotShown(t *testing.T, d *testbed.Daemon, value string) {
	t.Helper()
	for _, url := range debugURLs {
		require.NotContains(t, getDebug(t, d, url, ""), value, url)
	}
	if d.Flavor == testbed.Graphload {
		for _, accept := range graphForms {
			require.NotContains(t, getDebug(t, d, "/debug/graph", accept), value, accept)
		}
	}
}
