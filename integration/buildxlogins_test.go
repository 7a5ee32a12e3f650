package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/docker/cli/cli/config/types"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
)

// helperScript is a credential helper with one login.
const helperScript = `#!/bin/sh
[ "$1" = get ] || exit 1
read -r host
printf '{"ServerURL":"%%s","Username":"%s","Secret":"%s"}' "$host"
`

// clientConfig is a configuration of the docker CLI.
type clientConfig struct {
	name string
	// write writes config.json for a user, and returns additional environment
	// variables for the client.
	write func(t *testing.T, dir string, r *testbed.Registry, user, password string) (env []string)
}

// clientConfigs are the ways in which docker login stores a login.
var clientConfigs = []clientConfig{
	{"auths", func(t *testing.T, dir string, r *testbed.Registry, user, password string) []string {
		require.NoError(t, testbed.SaveLogin(dir, types.AuthConfig{ServerAddress: r.Host, Username: user, Password: password}))
		return nil
	}},
	{"credential helper", func(t *testing.T, dir string, r *testbed.Registry, user, password string) []string {
		return writeHelper(t, dir, fmt.Sprintf(`{"credHelpers":{%q:"testbed"}}`, r.Host), user, password)
	}},
	{"credentials store", func(t *testing.T, dir string, r *testbed.Registry, user, password string) []string {
		return writeHelper(t, dir, fmt.Sprintf(`{"credsStore":"testbed","auths":{%q:{}}}`, r.Host), user, password)
	}},
	{"identity token", func(t *testing.T, dir string, r *testbed.Registry, user, _ string) []string {
		require.NoError(t, r.LoginIdentity(t.Context(), dir, user))
		return nil
	}},
	{"identity token of a helper", func(t *testing.T, dir string, r *testbed.Registry, user, _ string) []string {
		saved := t.TempDir()
		require.NoError(t, r.LoginIdentity(t.Context(), saved, user))
		dt, err := os.ReadFile(filepath.Join(saved, "config.json"))
		require.NoError(t, err)
		var cfg struct {
			Auths map[string]struct{ IdentityToken string }
		}
		require.NoError(t, json.Unmarshal(dt, &cfg))
		// this name tells that the secret is a token
		return writeHelper(t, dir, fmt.Sprintf(`{"credHelpers":{%q:"testbed"}}`, r.Host), "<token>", cfg.Auths[r.Host].IdentityToken)
	}},
	{"docker login", func(t *testing.T, dir string, r *testbed.Registry, user, password string) []string {
		require.NoError(t, testbed.DockerLogin(t.Context(), dir, r.Host, user, password))
		return nil
	}},
}

func writeHelper(t *testing.T, dir, config, user, secret string) []string {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "docker-credential-testbed"), fmt.Appendf(nil, helperScript, user, secret), 0o700))
	return []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
}

// bakeOf writes a bake file with base on an image, and a child that is chained on base.
func bakeOf(t *testing.T, image, baseStep, childStep, output string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"base":  fmt.Sprintf("FROM %s\nRUN %s\n", image, baseStep),
		"child": fmt.Sprintf("FROM base\nRUN %s\n", childStep),
		"docker-bake.hcl": fmt.Sprintf(`
			target "base" { dockerfile = "base" }
			target "default" {
				dockerfile = "child"
				contexts   = { base = "target:base" }
				output     = [%q]
			}`, output),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return filepath.Join(dir, "docker-bake.hcl")
}

// TestBuildxLogins bakes with the configurations that docker login writes, and pushes.
// Registries get the requests that upstream's daemon sends. Clients show that they share
// a password when they do so with upstream's daemon.
func TestBuildxLogins(t *testing.T) {
	t.Parallel()
	bed := newLoginsBed(t)
	daemons := map[testbed.Flavor]*testbed.Daemon{}
	config := ""
	for _, r := range bed.registries {
		config += r.DaemonConfig()
	}
	for _, flavor := range testbed.Flavors {
		daemons[flavor] = newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config, Quiet: true})
	}
	for _, version := range []string{"v0.29.1", "v0.38.2"} {
		for kind, r := range bed.registries {
			for _, cfg := range clientConfigs {
				switch {
				case kind == "basic" && strings.HasPrefix(cfg.name, "identity"), kind == "tokens with GET" && cfg.name != "auths":
					continue // its server has no such login
				case kind != "basic" && kind != "tokens" && !*allCredentials, cfg.name != "auths" && version != "v0.38.2" && !*allCredentials:
					continue
				}
				t.Run(strings.Join([]string{version, kind, cfg.name}, "/"), func(t *testing.T) {
					if cfg.name == "docker login" {
						requireDocker(t)
					}
					shared, counts := map[testbed.Flavor]int{}, map[testbed.Flavor]map[string]int{}
					for _, flavor := range testbed.Flavors {
						b, err := testbed.NewBuilder(t.Context(), version, daemons[flavor])
						require.NoError(t, err)
						t.Cleanup(func() { require.NoError(t, b.Close()) })
						require.NoError(t, newClient(t, daemons[flavor]).Prune(t.Context(), nil, client.PruneAll))
						image, err := r.Push(t.Context(), "user", "private/"+strings.ToLower(identity.NewID()), os.DirFS(bed.rootfs))
						require.NoError(t, err)
						env := cfg.write(t, b.Config, r, "user", good)
						r.Requests()
						file := bakeOf(t, image, "echo base > /base # "+identity.NewID(), "test -f /base",
							"type=image,push=true,name="+r.Host+"/pushed/"+strings.ToLower(identity.NewID()))
						log, err := b.BakeLog(t.Context(), file, env)
						require.NoError(t, err, flavor)
						shared[flavor] = len(sharingLines(log))
						counts[flavor] = blobRequests(r.Requests())
					}
					t.Logf("requests: upstream %v, ours %v", counts[testbed.Upstream], counts[testbed.Graphload])
					require.Equal(t, shared[testbed.Upstream], shared[testbed.Graphload], "shared passwords")
					require.Equal(t, kind == "basic", shared[testbed.Graphload] > 0)
					for what, n := range counts[testbed.Graphload] {
						require.LessOrEqual(t, n, counts[testbed.Upstream][what], what)
					}
				})
			}
		}
	}
}

// sharingLines returns the vertices of plain progress that mention a shared password.
func sharingLines(log string) map[string]bool {
	lines := map[string]bool{}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "sharing credentials") {
			lines[line] = true
		}
	}
	return lines
}

// TestBuildxLoginsBeside runs two bakes of the same targets at the same time, each with
// its own configuration. The second one starts when base's step of the first one runs.
func TestBuildxLoginsBeside(t *testing.T) {
	t.Parallel()
	bed := newLoginsBed(t)
	config := ""
	for _, r := range bed.registries {
		config += r.DaemonConfig()
	}
	daemons := map[testbed.Flavor]*testbed.Daemon{}
	for _, flavor := range testbed.Flavors {
		daemons[flavor] = newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config, Quiet: true})
	}
	for _, version := range []string{"v0.29.1", "v0.38.2"} {
		for _, kind := range []string{"basic", "tokens"} {
			if !*allCredentials && (version == "v0.29.1") == (kind == "tokens") {
				continue
			}
			r := bed.registries[kind]
			for _, second := range []struct{ name, user, password string }{
				{name: "anonymous"},
				{"the same user", "user", good},
				{"changed password", "user", bad},
				{"without access", other, good},
			} {
				t.Run(strings.Join([]string{version, kind, second.name}, "/"), func(t *testing.T) {
					outcomes := map[testbed.Flavor]string{}
					for _, flavor := range testbed.Flavors {
						image, err := r.Push(t.Context(), "user", "private/"+strings.ToLower(identity.NewID()), os.DirFS(bed.rootfs))
						require.NoError(t, err)
						require.NoError(t, newClient(t, daemons[flavor]).Prune(t.Context(), nil, client.PruneAll))
						outcomes[flavor] = besideBake(t, version, daemons[flavor], r, image, second.user, second.password)
					}
					t.Logf("upstream: %s", outcomes[testbed.Upstream])
					require.Equal(t, outcomes[testbed.Upstream], outcomes[testbed.Graphload])
				})
			}
		}
	}
}

// besideBake returns the outcomes of two bakes of the same targets.
func besideBake(t *testing.T, version string, d *testbed.Daemon, r *testbed.Registry, image, user, password string) string {
	t.Helper()
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	}))
	defer server.Close()
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo()
	id := identity.NewID()
	bake := func(ctx context.Context, user, password string) error {
		b, err := testbed.NewBuilder(ctx, version, d)
		if err != nil {
			return err
		}
		defer b.Close()
		if user != "" {
			if err := testbed.SaveLogin(b.Config, types.AuthConfig{ServerAddress: r.Host, Username: user, Password: password}); err != nil {
				return err
			}
		}
		return b.Bake(ctx, bakeOf(t, image, "busybox wget -q -O- "+server.URL+" # "+id, "true # "+id, "type=cacheonly"), nil)
	}
	first, next := make(chan error, 1), make(chan error, 1)
	go func() { first <- bake(t.Context(), "user", good) }()
	select {
	case <-arrived:
	case err := <-first:
		require.FailNow(t, "the first bake did not wait", err)
	}
	go func() { next <- bake(t.Context(), user, password) }()
	var nextErr error
	if password == good && user == "user" {
		// the second bake joins the step, which is released after that
		letGo()
		nextErr = <-next
	} else {
		nextErr = <-next
		letGo()
	}
	outcome := "second: builds"
	if nextErr != nil {
		outcome = "second: " + lastError(nextErr, r.Host)
	}
	if err := <-first; err != nil {
		return outcome + "; first: " + lastError(err, r.Host)
	}
	return outcome + "; first: builds"
}

// buildxError matches the start of buildx's error message. The rest depends on which
// target, and which of the two calls for a target, failed first.
var buildxError = regexp.MustCompile(`^ERROR: (?:target \w+: )?(?:failed to solve|failed to run Build function): (.*?)(?:: exit status 1)?$`)

// lastError returns the error message of buildx.
func lastError(err error, host string) string {
	for line := range strings.Lines(err.Error()) {
		if m := buildxError.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			return identifiers.ReplaceAllString(strings.ReplaceAll(m[1], host, "HOST"), "…")
		}
	}
	return err.Error()
}
