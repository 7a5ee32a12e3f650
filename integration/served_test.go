package integration

import (
	"context"
	"net/url"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

// served is a BuildKit that runs, in a daemon or in a Docker engine. What is compared
// on both is the same test.
type served struct {
	addr       string // unix://
	connect    func(ctx context.Context, addr string) (*client.Client, error)
	newBuilder func(ctx context.Context, version string) (*testbed.Builder, error)
	// forward has it reach more addresses of this machine, if it does not anyway
	forward func(ctx context.Context, addrs ...string) error
}

// client connects to it for the test.
func (s served) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := s.connect(t.Context(), s.addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// builder returns a buildx for the test that builds with it.
func (s served) builder(t *testing.T, version string) *testbed.Builder {
	t.Helper()
	b, err := s.newBuilder(t.Context(), version)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// reach lets its builds use services that are started later.
func (s served) reach(t *testing.T, services ...service) {
	t.Helper()
	if s.forward == nil {
		return
	}
	for _, service := range services {
		require.NoError(t, s.forward(t.Context(), service.addr))
	}
}

// service is what builds take from the network.
type service struct {
	addr   string // host and port
	config string // for buildkitd.toml
}

func registryService(r *testbed.Registry) service {
	return service{addr: r.Host, config: r.DaemonConfig()}
}

func webService(t *testing.T, base string) service {
	t.Helper()
	u, err := url.Parse(base)
	require.NoError(t, err)
	return service{addr: u.Host}
}

// serveFunc starts a BuildKit for the test whose builds can use the services.
type serveFunc func(t *testing.T, flavor testbed.Flavor, services ...service) served

// serveDaemon starts buildkitd.
func serveDaemon(t *testing.T, flavor testbed.Flavor, services ...service) served {
	t.Helper()
	config := ""
	for _, s := range services {
		config += s.config
	}
	d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor, Config: config, Quiet: true})
	return served{
		addr:    d.Addr,
		connect: func(ctx context.Context, addr string) (*client.Client, error) { return client.New(ctx, addr) },
		newBuilder: func(ctx context.Context, version string) (*testbed.Builder, error) {
			return testbed.NewBuilder(ctx, version, d)
		},
	}
}

// serveEngine starts a Docker engine. To it, registries on the loopback interface are
// insecure by default.
func serveEngine(t *testing.T, flavor testbed.Flavor, services ...service) served {
	t.Helper()
	e := newEngine(t, testbed.EngineOptions{Flavor: flavor})
	s := served{addr: e.Host, connect: testbed.ConnectEngine, newBuilder: e.NewBuilder, forward: e.Forward}
	s.reach(t, services...)
	return s
}
