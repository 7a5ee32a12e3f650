package resolver

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/sessiontest"
	"github.com/moby/buildkit/util/graphload"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// lentSessions is a group whose first session is lent.
type lentSessions []string

func (g lentSessions) Lent() bool { return true }
func (g lentSessions) SessionIterator() session.Iterator {
	return session.NewGroup(g...).SessionIterator()
}

// dockerSession is the session of a client that is logged in to host with a
// password, or nowhere.
func dockerSession(t *testing.T, sm *session.Manager, host, password string) string {
	config := configfile.New("")
	if password != "" {
		config.AuthConfigs[host] = types.AuthConfig{ServerAddress: host, Username: "user", Password: password}
	}
	return sessiontest.Connect(t, sm, authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(config),
	}))
}

// TestLentLogins resolves with groups of sessions in any order, many at once.
func TestLentLogins(t *testing.T) {
	if !graphload.Enabled() {
		t.Skip("nothing is lent")
	}
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); password != "good" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("a", 64))
		w.Header().Set("Content-Length", "2")
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")

	sm, err := session.NewManager()
	require.NoError(t, err)
	passwords := map[string]string{}
	var ids []string
	for _, password := range []string{"", "old", "good"} {
		id := dockerSession(t, sm, host, password)
		passwords[id] = password
		ids = append(ids, id)
	}
	resolve := func(handlers *authHandlerNS, group session.Group) error {
		r := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: registry.Client(), Host: host, Scheme: "http", Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
				Authorizer:   newDockerAuthorizer(registry.Client(), handlers, sm, group),
			}}, nil
		}})
		_, _, err := r.Resolve(t.Context(), host+"/image:latest")
		return err
	}

	seed := rand.Uint64() //nolint:gosec // not for secrets
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	for range rounds {
		rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		group := lentSessions(append([]string{}, ids[:2+rnd.IntN(2)]...))
		accepted := false
		var order []string
		for _, id := range group {
			accepted = accepted || passwords[id] == "good"
			order = append(order, fmt.Sprintf("%q", passwords[id]))
		}
		handlers := newAuthHandlerNS(sm)
		var eg errgroup.Group
		for range 4 {
			eg.Go(func() error { return resolve(handlers, group) })
		}
		if err := eg.Wait(); accepted {
			require.NoError(t, err, "%v", order)
		} else {
			require.ErrorContains(t, err, "401 Unauthorized", "%v", order)
		}
	}
}
