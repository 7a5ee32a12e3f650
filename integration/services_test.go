package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/stretchr/testify/require"
)

// buildxVersion is the release for tests that do not depend on the release of buildx.
const buildxVersion = "v0.35.0"

func newBuilder(t *testing.T, d *testbed.Daemon) *testbed.Builder {
	t.Helper()
	return newBuilderOf(t, buildxVersion, d)
}

// newBuilderOf connects a version of buildx to the daemon for the test.
func newBuilderOf(t *testing.T, version string, d *testbed.Daemon) *testbed.Builder {
	t.Helper()
	b, err := testbed.NewBuilder(t.Context(), version, d)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// build runs buildx build without cache on a folder with a root filesystem, and returns
// the output.
func build(t *testing.T, b *testbed.Builder, dockerfile string, env []string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	cmd := b.Command(t.Context(), append([]string{"build", "--no-cache", "--progress", "plain", dir}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	dt, err := cmd.CombinedOutput()
	return string(dt), err
}

func TestRegistry(t *testing.T) {
	requireTestbed(t)
	for name, opt := range map[string]testbed.RegistryOptions{
		"anonymous": {},
		"basic":     {Users: map[string]string{"user": "password"}},
		"tls":       {Users: map[string]string{"user": "password"}, TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := testbed.StartRegistry(t.Context(), opt)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, r.Close()) })
			d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Config: r.DaemonConfig()})

			image := r.Host + "/base:latest"
			b := newBuilder(t, d)
			if opt.Users != nil {
				require.NoError(t, r.Login(b.Config, "user"))
			}
			out, err := build(t, b, "FROM scratch\nCOPY rootfs /\n", nil, "--output", "type=image,push=true,name="+image)
			require.NoError(t, err, out)
			from := "FROM " + image + "\nRUN true\n"
			out, err = build(t, b, from, nil, "--pull", "--output", "type=cacheonly")
			require.NoError(t, err, out)

			out, err = build(t, newBuilder(t, d), from, nil, "--pull", "--output", "type=cacheonly")
			if opt.Users == nil {
				require.NoError(t, err, out)
				return
			}
			require.Error(t, err)
			require.Contains(t, out, "401 Unauthorized")
		})
	}
}

func TestGitServer(t *testing.T) {
	requireTestbed(t)
	const token = "git-token"
	g, err := testbed.StartGitServer(t.Context(), map[string]string{"dir/file": "content"}, testbed.Users{token: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	b := newBuilder(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))

	dockerfile := strings.Join([]string{
		"FROM scratch",
		"COPY rootfs /",
		"ADD " + g.URL + "#main /src",
		`RUN [ "$(cat /src/dir/file)" = content ]`,
		"",
	}, "\n")
	out, err := build(t, b, dockerfile, []string{"TOKEN=" + token}, "--secret", "id=GIT_AUTH_TOKEN,env=TOKEN", "--output", "type=cacheonly")
	require.NoError(t, err, out)
	out, err = build(t, b, dockerfile, nil, "--output", "type=cacheonly")
	require.Error(t, err, out)
	require.Contains(t, out, "could not read Username")
}

func TestHTTPServer(t *testing.T) {
	requireTestbed(t)
	const token = "http-token"
	s, err := testbed.StartHTTPServer(fstest.MapFS{"file": {Data: []byte("content")}}, testbed.Users{token: "user"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	b := newBuilder(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))

	dockerfile := strings.Join([]string{
		"FROM scratch",
		"COPY rootfs /",
		"ADD " + s.URL + "/file /file",
		`RUN [ "$(cat /file)" = content ]`,
		"",
	}, "\n")
	out, err := build(t, b, dockerfile, []string{"TOKEN=" + token}, "--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN", "--output", "type=cacheonly")
	require.NoError(t, err, out)
	out, err = build(t, b, dockerfile, nil, "--output", "type=cacheonly")
	require.Error(t, err, out)
	require.Contains(t, out, "401")
}

// TestGitSSHServer uses a repository that only one of two keys can read.
func TestGitSSHServer(t *testing.T) {
	requireTestbed(t)
	git, err := testbed.StartGitServer(t.Context(), map[string]string{"file": "content"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Close()) })
	users, agents := testbed.Users{}, map[string]string{}
	for _, name := range []string{"owner", "other", "unknown"} {
		agent, err := testbed.StartSSHAgent(t.Context(), name)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, agent.Close()) })
		agents[name] = agent.Socket
		if name != "unknown" {
			users[agent.PublicKey] = name
		}
	}
	s, err := git.ServeSSH(t.Context(), users)
	testutil.Require(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	c := newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))
	for name, want := range map[string]string{"owner": "", "other": "Repository not found", "unknown": "Permission denied (publickey)"} {
		p := peer{name: name, agent: agents[name]}
		seen, err := p.read(t.Context(), c, func(ctx context.Context, b peerBuild) (gateway.Reference, error) {
			return b.solve(ctx, llb.Scratch().File(llb.Copy(llb.Git(s.Private("owner"), "main", llb.KnownSSHHosts(s.KnownHosts)), "/file", "/seen")))
		})
		if want != "" {
			require.ErrorContains(t, err, want, name)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "content", seen)
	}
}
