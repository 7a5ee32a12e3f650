package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

// freePort returns a port of the loopback address that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// runLoops bakes the loops of the demo with a builder.
func runLoops(t *testing.T, b *testbed.Builder, runs int) {
	t.Helper()
	for _, loop := range testbed.Loops {
		t.Run(b.Version+"/"+loop.Name, func(t *testing.T) {
			p, err := testbed.NewProject(t.Context(), loop)
			require.NoError(t, err)
			defer func() { require.NoError(t, p.Close()) }()
			for range runs {
				require.NoError(t, p.Run(t.Context(), b))
			}
			t.Logf("%s with buildx %s: %d/%d", loop.Name, b.Version, runs, runs)
		})
	}
}

// TestMutualTLS bakes the loops over TCP, with a daemon that asks for a
// certificate. Who has none, or one of another authority, gets nothing.
func TestMutualTLS(t *testing.T) {
	requireTestbed(t)
	ca, err := testbed.NewAuthority(t.TempDir())
	require.NoError(t, err)
	server, err := ca.Issue("server")
	require.NoError(t, err)
	user, err := ca.Issue("user")
	require.NoError(t, err)
	addr := fmt.Sprintf("tcp://127.0.0.1:%d", freePort(t))
	newDaemon(t, testbed.DaemonOptions{
		Flavor: testbed.Graphload,
		Args:   []string{"--addr", addr, "--tlscacert", ca.Cert, "--tlscert", server.Cert, "--tlskey", server.Key},
	})

	for _, version := range containerBuildx {
		b, err := testbed.NewRemoteBuilder(t.Context(), version, addr, "cacert="+ca.Cert, "cert="+user.Cert, "key="+user.Key)
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close()) }()
		runLoops(t, b, *containerRuns)
	}

	other, err := testbed.NewAuthority(t.TempDir())
	require.NoError(t, err)
	stranger, err := other.Issue("user")
	require.NoError(t, err)
	for name, opts := range map[string][]client.ClientOpt{
		"without TLS":                        nil,
		"without a certificate":              {client.WithServerConfig("127.0.0.1", ca.Cert)},
		"with one of another authority":      {client.WithServerConfig("127.0.0.1", ca.Cert), client.WithCredentials(stranger.Cert, stranger.Key)},
		"with a server of another authority": {client.WithServerConfig("127.0.0.1", other.Cert), client.WithCredentials(user.Cert, user.Key)},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := client.New(t.Context(), addr, opts...)
			require.NoError(t, err)
			defer c.Close()
			_, err = c.Info(t.Context())
			require.Error(t, err)
			_, err = c.ListWorkers(t.Context())
			require.Error(t, err)
			_, err = c.Solve(t.Context(), nil, client.SolveOpt{Frontend: "dockerfile.v0"}, nil)
			require.Error(t, err)
			t.Log(err)
		})
	}
	c, err := client.New(t.Context(), addr, client.WithServerConfig("127.0.0.1", ca.Cert), client.WithCredentials(user.Cert, user.Key))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Info(t.Context())
	require.NoError(t, err, "with a certificate")
}

// writeUnits writes the units of systemd as they are installed.
func writeUnits(t *testing.T, bin string) (service, socket string) {
	t.Helper()
	root, err := upstream.Root()
	require.NoError(t, err)
	dir := t.TempDir()
	prefix := filepath.Join(dir, "prefix")
	require.NoError(t, os.MkdirAll(filepath.Join(prefix, "bin"), 0o755))
	require.NoError(t, os.Symlink(bin, filepath.Join(prefix, "bin", "buildkitd")))
	for _, name := range []string{"buildkit.service", "buildkit.socket"} {
		dt, err := os.ReadFile(filepath.Join(root, "packaging", "systemd", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), bytes.ReplaceAll(dt, []byte("@PREFIX@"), []byte(prefix)), 0o600))
	}
	return filepath.Join(dir, "buildkit.service"), filepath.Join(dir, "buildkit.socket")
}

// requireCommand skips the test when a command is not there, and fails in CI.
func requireCommand(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}
		t.Skip(err)
	}
	return path
}

// TestSystemdUnits has systemd check the units.
func TestSystemdUnits(t *testing.T) {
	analyze := requireCommand(t, "systemd-analyze")
	bin, err := testbed.Binary(testbed.Graphload, "buildkitd")
	require.NoError(t, err)
	service, socket := writeUnits(t, bin)
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", service, socket).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out), "warnings")
}

// TestSocketActivation has the daemon started by the first connection, on a
// socket that it is given, as buildkit.socket does.
func TestSocketActivation(t *testing.T) {
	requireTestbed(t)
	activate := requireCommand(t, "systemd-socket-activate")
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			a, err := testbed.StartActivated(t.Context(), activate, flavor)
			require.NoError(t, err)
			defer func() {
				if t.Failed() {
					t.Log(a.Log())
				}
				require.NoError(t, a.Close())
			}()
			require.NotContains(t, a.Log(), "found worker", "nothing runs before somebody connects")

			c, err := client.New(t.Context(), a.Addr)
			require.NoError(t, err)
			defer c.Close()
			start := time.Now()
			info, err := c.Info(t.Context())
			require.NoError(t, err)
			t.Logf("%s answered after %s", info.BuildkitVersion.Version, time.Since(start).Round(time.Millisecond))
			if flavor == testbed.Upstream {
				return
			}
			b, err := testbed.NewRemoteBuilder(t.Context(), "v0.29.1", a.Addr)
			require.NoError(t, err)
			defer func() { require.NoError(t, b.Close()) }()
			runLoops(t, b, 1)
		})
	}
}
