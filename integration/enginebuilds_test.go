package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/stretchr/testify/require"
)

// TestEngineChildFirst is TestChildFirst in an engine.
func TestEngineChildFirst(t *testing.T) {
	requireEngine(t)
	testChildFirst(t, serveEngine)
}

// TestEngineCredentials is TestCredentials in an engine.
func TestEngineCredentials(t *testing.T) {
	requireEngine(t)
	testCredentials(t, serveEngine)
}

// TestEngineRefusedLogins is TestRefusedLogins in an engine.
func TestEngineRefusedLogins(t *testing.T) {
	requireEngine(t)
	testRefusedLogins(t, serveEngine)
}

// TestEngineStrangers is TestStrangers in both engines.
func TestEngineStrangers(t *testing.T) {
	requireEngine(t)
	bed := newStrangerBed(t, serveEngine)
	t.Run("sessions", bed.testSessions)
	t.Run("cache import", bed.testCacheImport)
	t.Run("stale", bed.testStale)
}

// TestEngineQuietBuilds is TestQuietBuilds in both engines.
func TestEngineQuietBuilds(t *testing.T) {
	requireEngine(t)
	for _, tc := range ordinaryBuilds {
		t.Run(tc.name, func(t *testing.T) {
			requireQuiet(t, serveEngine, tc.dockerfile, tc.attrs, tc.sequence)
		})
	}
}

// engineBed has a root filesystem for chains in engines that restart.
func engineBed(t *testing.T) *randomBed {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	return &randomBed{
		locals: map[string]string{"rootfs": dir},
		root:   llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/")),
	}
}

// TestEnginePrune prunes the cache of an engine while a build is chained on base,
// which has a step that has run, and one that has not. What the builds still need
// stays, and nothing is left of them when they have ended.
func TestEnginePrune(t *testing.T) {
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			e := newEngine(t, testbed.EngineOptions{Flavor: flavor})
			b := newEngineBuilder(t, e, "v0.38.2")
			prune := func(t *testing.T) {
				out, err := b.Docker(t.Context(), t.TempDir(), nil, "builder", "prune", "--all", "--force")
				require.NoError(t, err)
				t.Log(out)
			}
			bed := engineBed(t)
			c := served{addr: e.Host, connect: testbed.ConnectEngine}.client(t)
			first := sh(bed.root, "cat /proc/sys/kernel/random/uuid > /first")
			second := sh(first, `test "$(cat /run/secrets/token)" = base`, secretFile("token"))
			base := peer{name: "base", locals: bed.locals, secrets: map[string]string{"token": "base"}}
			child := peer{name: "child", locals: bed.locals, secrets: map[string]string{"token": "child"}}
			read := func(ctx context.Context, b peerBuild, st llb.State) (string, error) {
				ref, err := b.solve(ctx, st)
				if err != nil {
					return "", err
				}
				dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/first"})
				return string(dt), err
			}
			var before, after string
			err := base.run(t.Context(), c, func(ctx context.Context, b peerBuild) (err error) {
				if before, err = read(ctx, b, first); err != nil {
					return err
				}
				if _, err := b.solve(ctx, second); err != nil {
					return err
				}
				prune(t)
				return child.run(ctx, c, func(ctx context.Context, b peerBuild) (err error) {
					after, err = read(ctx, b, sh(second, "true"))
					return err
				})
			})
			if flavor == testbed.Graphload {
				require.NoError(t, err)
				require.Equal(t, before, after, "the result that base holds was pruned")
			} else {
				require.ErrorContains(t, err, "exit code: 1", "upstream's engine has the defect")
			}

			require.NotEmpty(t, buildCache(t, e))
			prune(t)
			require.Empty(t, buildCache(t, e))
		})
	}
}

// buildCache returns the records of the cache of an engine, as docker system df shows
// them.
func buildCache(t *testing.T, e *testbed.Engine) []json.RawMessage {
	t.Helper()
	dt, err := e.Get(t.Context(), "/v1.51/system/df?type=build-cache")
	require.NoError(t, err)
	var usage struct{ BuildCache []json.RawMessage }
	require.NoError(t, json.Unmarshal(dt, &usage))
	return usage.BuildCache
}

// TestEngineRestart restarts the engine while a child evaluates base. The clients are
// told, and the engine that comes back builds chains, and has in its cache what was
// there.
func TestEngineRestart(t *testing.T) {
	e := newEngine(t, testbed.EngineOptions{Flavor: testbed.Graphload})
	bed := engineBed(t)
	s := served{addr: e.Host, connect: testbed.ConnectEngine}
	for range 2 {
		c := s.client(t)
		bed.requireWorks(t, c)
		base, child, state := bed.chain(t.Name(), "echo started; sleep 1")
		ch := started(&child)
		told := make(chan error, 1)
		go func() {
			told <- base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				if _, err := b.solve(ctx, state); err != nil {
					return err
				}
				return child.run(ctx, c, func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "sleep 100")) })
			})
		}()
		receive(t, ch)
		require.NoError(t, e.Restart(t.Context(), testbed.Graphload))
		require.Error(t, receive(t, told))
	}
	bed.requireWorks(t, s.client(t))
}

// TestEngineLiveRestore replaces an engine with live-restore in the middle of a chain:
// upstream's by this one and back. A container runs on.
func TestEngineLiveRestore(t *testing.T) {
	e := newEngine(t, testbed.EngineOptions{Flavor: testbed.Upstream, LiveRestore: true})
	b := newEngineBuilder(t, e, "v0.38.2")
	dir := t.TempDir()
	docker := func(args ...string) string {
		t.Helper()
		out, err := b.Docker(t.Context(), dir, nil, args...)
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY rootfs /\n"), 0o600))
	docker("build", "--tag", "rootfs", ".")
	docker("run", "--detach", "--name", "lives", "rootfs", "sh", "-c", "echo started; exec sleep 1000000")
	state := func() string {
		t.Helper()
		return docker("inspect", "--format", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "lives")
	}
	before := state()
	require.True(t, strings.HasPrefix(before, "running "), before)

	bed := engineBed(t)
	s := served{addr: e.Host, connect: testbed.ConnectEngine}
	for _, flavor := range []testbed.Flavor{testbed.Graphload, testbed.Graphload, testbed.Upstream} {
		c := s.client(t)
		held, ended := make(chan error, 1), make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), hangTimeout)
		go func() {
			ended <- peer{name: "base", locals: bed.locals}.run(ctx, c, func(ctx context.Context, b peerBuild) error {
				_, err := b.solve(ctx, sh(bed.root, "true"))
				held <- err
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		require.NoError(t, receive(t, held))
		require.NoError(t, e.Restart(t.Context(), flavor))
		cancel()
		require.Error(t, <-ended)

		require.Equal(t, before, state(), "the container after the start of the %s engine", flavor)
		require.Equal(t, "alive", docker("exec", "lives", "echo", "alive"))
		require.Equal(t, "started", docker("logs", "lives"))
		if flavor == testbed.Graphload {
			bed.requireWorks(t, s.client(t))
		}
	}
}
