package integration

import (
	"flag"
	"html"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

var screenshot = flag.String("screenshot", "", "file for a picture of the page of TestDebugPage")

// heldBake are targets that are chained on base. The step of base with a secret
// waits for HOLD, a URL.
const heldBake = `
variable "TOKEN" {}
variable "HOLD" {}

group "default" {
  targets = ["app", "tests", "docs"]
}

target "base" {
  secret = ["id=token,env=TOKEN"]
  output = ["type=cacheonly"]
  args   = { HOLD = HOLD }
  dockerfile-inline = <<EOT
    FROM scratch AS rootfs
    COPY rootfs /
    FROM rootfs AS tools
    RUN mkdir -p /opt/tools
    FROM rootfs AS sources
    ARG HOLD
    RUN --mount=type=secret,id=token,env=TOKEN [ -n "$TOKEN" ] && busybox wget -q -O /sources "$HOLD"
    FROM tools AS base
    COPY --from=sources /sources /
  EOT
}

target "api" {
  contexts = { base = "target:base" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<EOT
    FROM base AS api
    RUN echo api > /api
  EOT
}

target "web" {
  contexts = { base = "target:base" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<EOT
    FROM base AS web
    RUN echo web > /web
  EOT
}

target "app" {
  contexts = { api = "target:api", web = "target:web" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<EOT
    FROM api AS app
    COPY --from=web /web /web
    RUN cat /api /web
  EOT
}

target "tests" {
  contexts = { api = "target:api" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<EOT
    FROM api AS tests
    RUN cat /api
  EOT
}

target "docs" {
  contexts = { web = "target:web" }
  output   = ["type=cacheonly"]
  dockerfile-inline = <<EOT
    FROM web AS docs
    RUN cat /web
  EOT
}
`

// TestDebugPage has a browser draw the graph of a bake that is stopped halfway.
func TestDebugPage(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not in PATH")
	}
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	b := newBuilder(t, d)
	held, release := make(chan struct{}, 1), make(chan struct{})
	hold := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		held <- struct{}{}
		<-release
	}))
	t.Cleanup(hold.Close)
	goOn := sync.OnceFunc(func() { close(release) })
	t.Cleanup(goOn)
	debug := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "debug" },
		Transport: debugClient(t, d).Transport,
	})
	t.Cleanup(debug.Close)

	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	file := filepath.Join(dir, "docker-bake.hcl")
	require.NoError(t, os.WriteFile(file, []byte(heldBake), 0o600))
	const value = "the-value-of-the-secret"
	baked := make(chan error, 1)
	go func() {
		baked <- b.Bake(t.Context(), file, []string{"TOKEN=" + value, "HOLD=" + hold.URL}, "--no-cache")
	}()
	select {
	case <-held:
	case err := <-baked:
		require.NoError(t, err)
		t.Fatal("the bake did not wait")
	}

	g := getGraph(t, d, "")
	step := g.step(t, "--mount=type=secret,id=token")
	require.Equal(t, "running", step.Status)
	require.NotEmpty(t, step.Owners)
	page := debug.URL + "/debug/graph#" + step.Digest
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), browser, append([]string{
			"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
			"--window-size=1500,700", "--virtual-time-budget=3000",
		}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		cmd.WaitDelay = 10 * time.Second
		out, err := cmd.Output()
		require.NoError(t, err, "%s", &stderr)
		return string(out)
	}
	dom := run("--enable-logging=stderr", "--dump-dom", page)
	require.Equal(t, len(g.Steps), strings.Count(dom, `<g class="node `))
	_, details, ok := strings.Cut(dom, `<div id="details">`)
	require.True(t, ok)
	details, _, _ = strings.Cut(details, "</div>")
	require.Contains(t, html.UnescapeString(details), step.Name, "the script selects the step that the URL names")
	for _, id := range step.Sessions {
		require.Contains(t, details, id)
	}
	require.NotContains(t, dom, value)
	if *screenshot != "" {
		path, err := filepath.Abs(*screenshot)
		require.NoError(t, err)
		run("--screenshot="+path, page)
		require.FileExists(t, path)
	}
	goOn()
	require.NoError(t, errors.Wrap(<-baked, "bake"))
}
