package integration

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/stretchr/testify/require"
)

// TestTenants has two users of one daemon that do not know of each other, and
// says what one gets from the other: on upstream's daemon, and on this one. It
// is what docs/security.md refers to.
func TestTenants(t *testing.T) {
	const value = "secret-of-alice"
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	step := func() llb.State {
		return sh(root, `cat /run/secrets/token > /copy`, secretFile("token"))
	}
	alice := peer{name: "alice", secrets: map[string]string{"token": value}, locals: locals}
	mallory := peer{name: "mallory", secrets: map[string]string{}, locals: locals}

	// read evaluates a state and returns what the step has copied.
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

		// secrets are not in cache keys: who sends the same step gets the
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

		// and the session of a build that is running the same step serves it
		t.Run(string(flavor)+"/identical step while it is solved lazily", func(t *testing.T) {
			st := step()
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, st); err != nil {
					return err
				}
				err := mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
					got, err := read(ctx, b, st)
					if err == nil {
						require.Equal(t, value, got)
					}
					return err
				})
				if flavor == testbed.Graphload {
					require.NoError(t, err, "the owner serves its own step")
				} else {
					require.ErrorContains(t, err, "secret token: not found")
				}
				return nil
			}))
		})

		t.Run(string(flavor)+"/another step with the same id", func(t *testing.T) {
			st := step()
			require.NoError(t, alice.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, st); err != nil {
					return err
				}
				err := mallory.run(ctx, c, func(ctx context.Context, b peerBuild) error {
					_, err := read(ctx, b, step())
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
				_, err := read(ctx, b, st)
				return err
			})
			require.ErrorContains(t, err, "secret token: not found")
		})

		// the same definition is another step when a policy has changed it
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
					_, err := read(ctx, b, st)
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
	}
}

// requireNotShown fails if a debug handler shows a value.
func requireNotShown(t *testing.T, d *testbed.Daemon, value string) {
	t.Helper()
	hc := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.DebugAddr)
	}}}
	defer hc.CloseIdleConnections()
	// /debug/graph is not there in every build
	for _, url := range []string{"/debug/vars", "/debug/requests?fam=&b=0", "/debug/events", "/debug/cache/all", "/debug/cache/store", "/metrics", "/debug/graph", "/debug/pprof/cmdline"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://debug"+url, nil)
		require.NoError(t, err)
		resp, err := hc.Do(req)
		require.NoError(t, err)
		dt, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		require.NoError(t, err)
		require.NotContains(t, string(dt), value, url)
	}
}
