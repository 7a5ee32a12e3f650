package integration

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/moby/buildkit/client/llb"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

var screenshot = flag.String("screenshot", "", "file for a picture of the page of TestDebugPage")

// heldBake is a bake file with targets that are chained on base. Base's step with a
// secret waits for HOLD, a URL.
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

// browserTimeout bounds all calls to a browser. The machine may be busy with other
// tests.
const browserTimeout = time.Minute

// browser is a headless Chromium with one page. The test controls it through pipes, with
// the protocol of its developer tools.
type browser struct {
	t       *testing.T
	in, out *os.File
	answers *bufio.Reader
	calls   int
	session string
	loaded  int      // pages
	errors  []string // errors of scripts, and what the page's policy has blocked
}

// browserMessage is an answer or an event.
type browserMessage struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Result json.RawMessage `json:"result"`
	Params json.RawMessage `json:"params"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// newBrowser starts a browser for the test. The test fails if the browser has reported
// errors by its end.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := testutil.RequireCommand(t, "chromium")
	home := t.TempDir()
	theirIn, in, err := os.Pipe()
	require.NoError(t, err)
	out, theirOut, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1500,700",
		"--user-data-dir="+filepath.Join(home, "data"), "--remote-debugging-pipe") //nolint:noctx // ended by the cleanup
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home)
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = 10 * time.Second
	require.NoError(t, cmd.Start())
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, in: in, out: out, answers: bufio.NewReader(out)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // the exit code does not depend on the page
	}()
	t.Cleanup(func() {
		in.Close() // the browser ends when its input is closed
		out.Close()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		if t.Failed() {
			t.Logf("chromium: %s", &stderr)
		}
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// call calls a method of the protocol.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.calls++
	req := map[string]any{"id": b.calls, "method": method}
	if params != nil {
		req["params"] = params
	}
	if b.session != "" {
		req["sessionId"] = b.session
	}
	dt, err := json.Marshal(req)
	require.NoError(b.t, err)
	_, err = b.in.Write(append(dt, 0))
	require.NoError(b.t, err, method)
	for {
		msg := b.read(method)
		if msg.ID != b.calls {
			continue
		}
		require.Nil(b.t, msg.Error, "%s: %s", method, msg.Error)
		if result != nil {
			require.NoError(b.t, json.Unmarshal(msg.Result, result))
		}
		return
	}
}

// read waits for the next message and records what it says about the page.
func (b *browser) read(waitsFor string) (msg browserMessage) {
	b.t.Helper()
	require.NoError(b.t, b.out.SetReadDeadline(time.Now().Add(browserTimeout)))
	dt, err := b.answers.ReadBytes(0)
	require.NoError(b.t, err, "no answer to %s", waitsFor)
	require.NoError(b.t, json.Unmarshal(dt[:len(dt)-1], &msg))
	switch msg.Method {
	case "Page.loadEventFired":
		b.loaded++
	case "Runtime.exceptionThrown":
		b.errors = append(b.errors, string(msg.Params))
	case "Log.entryAdded":
		var logged struct{ Entry struct{ Level, Text string } }
		require.NoError(b.t, json.Unmarshal(msg.Params, &logged))
		if logged.Entry.Level == "error" {
			b.errors = append(b.errors, logged.Entry.Text)
		}
	}
	return msg
}

// load calls a function that makes the browser load a page, and waits for the page.
func (b *browser) load(action func()) {
	b.t.Helper()
	before := b.loaded
	action()
	for b.loaded == before {
		b.read("the load of a page")
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.load(func() { b.call("Page.navigate", map[string]any{"url": url}, nil) })
}

// eval lets the page evaluate an expression, and waits for the result if it is a promise.
// The expression is a format for fmt.
func (b *browser) eval(result any, expression string, values ...any) {
	b.t.Helper()
	for i, v := range values {
		dt, err := json.Marshal(v)
		require.NoError(b.t, err)
		values[i] = dt
	}
	expression = fmt.Sprintf(expression, values...)
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &answer)
	require.Nil(b.t, answer.ExceptionDetails, "%s: %s", expression, answer.ExceptionDetails)
	if result != nil {
		require.NoError(b.t, json.Unmarshal(answer.Result.Value, result), expression)
	}
}

// choose selects an option as a user does.
func (b *browser) choose(id, value string) {
	b.t.Helper()
	b.eval(nil, `(() => { const el = document.getElementById(%s); el.value = %s; el.dispatchEvent(new Event("change", {bubbles: true})); })()`, id, value)
}

// count returns the number of elements that a selector finds.
func (b *browser) count(selector string) (n int) {
	b.t.Helper()
	b.eval(&n, `document.querySelectorAll(%s).length`, selector)
	return n
}

// text returns the text of an element.
func (b *browser) text(id string) (s string) {
	b.t.Helper()
	b.eval(&s, `document.getElementById(%s).innerText`, id)
	return s
}

// drawn waits until earlier changes are on the screen.
func (b *browser) drawn() {
	b.t.Helper()
	b.eval(nil, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))`)
}

// click moves the pointer to the step and clicks.
func (b *browser) click(digest string) {
	b.t.Helper()
	b.drawn()
	var at struct{ X, Y float64 }
	b.eval(&at, `(() => {
		const graph = JSON.parse(document.getElementById("data").textContent);
		const node = document.querySelector('.node[data-index="' + graph.steps.findIndex(s => s.digest === %s) + '"] .box');
		const box = node.getBoundingClientRect();
		return {x: box.x + box.width / 2, y: box.y + box.height / 2};
	})()`, digest)
	for _, typ := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		b.call("Input.dispatchMouseEvent", map[string]any{"type": typ, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
	}
}

// picture takes a picture of a window of the given size, at twice the resolution.
func (b *browser) picture(path string, width, height int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 2, "mobile": false}, nil)
	b.drawn()
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(path, png, 0o644))
}

// debugURL serves the debug address of the daemon, a unix socket, to a browser.
func debugURL(t *testing.T, d *testbed.Daemon) string {
	t.Helper()
	debug := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "debug" },
		Transport: debugClient(t, d).Transport,
	})
	t.Cleanup(debug.Close)
	return debug.URL
}

// Size of the window for the picture.
const pictureWidth, pictureHeight = 1500, 500

// TestDebugPage lets a browser draw the graph of a bake that is stopped halfway, and uses
// the page.
func TestDebugPage(t *testing.T) {
	requireTestbed(t)
	page := newBrowser(t)
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
	address := debugURL(t, d) + "/debug/graph"

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

	// wait until all targets are there and wait for that step
	var g *debugGraph
	require.Eventually(t, func() bool {
		g = getGraph(t, d, "")
		for _, s := range g.Steps {
			if s.Status == "registered" || (s.Status == "running" && !strings.Contains(s.Name, "id=token")) {
				return false
			}
		}
		for _, last := range []string{"RUN cat /api /web", "RUN cat /api", "RUN cat /web"} {
			if !slices.ContainsFunc(g.Steps, func(s debugStep) bool { return strings.HasSuffix(s.Name, last) }) {
				return false
			}
		}
		return true
	}, browserTimeout, 20*time.Millisecond)
	step := g.step(t, "--mount=type=secret,id=token")
	require.Equal(t, "running", step.Status)
	require.NotEmpty(t, step.Owners)
	require.Contains(t, step.Name, hold.URL, "a build-arg that a command names is shown")
	requireDetails := func(step debugStep) {
		details := page.text("details")
		require.Contains(t, strings.Join(strings.Fields(details), " "), strings.Join(strings.Fields(step.Name), " "))
		require.Contains(t, details, step.Digest)
		for _, session := range step.Sessions {
			require.Contains(t, details, session.ID)
			require.Equal(t, session.Lent, strings.Contains(details, session.ID+", lent"))
		}
	}
	page.open(address + "#" + step.Digest)
	require.Equal(t, len(g.Steps), page.count(".node"))
	requireDetails(step) // the one that the address names
	var all string
	page.eval(&all, `document.documentElement.outerHTML`)
	require.NotContains(t, all, value)
	if *screenshot != "" {
		page.picture(*screenshot, pictureWidth, pictureHeight)
		page.call("Emulation.clearDeviceMetricsOverride", nil, nil)
	}

	other := g.step(t, "RUN cat /api /web")
	page.click(other.Digest)
	requireDetails(other)

	smaller := false
	for _, build := range g.Builds {
		want := getGraph(t, d, "?build="+url.QueryEscape(build.Ref))
		require.NotEmpty(t, want.Steps)
		page.load(func() { page.choose("build", build.Ref) })
		require.Equal(t, len(want.Steps), page.count(".node"))
		var chosen []string
		page.eval(&chosen, `[new URLSearchParams(location.search).get("build"), document.getElementById("build").value]`)
		require.Equal(t, []string{build.Ref, build.Ref}, chosen)
		smaller = smaller || len(want.Steps) < len(g.Steps)
	}
	require.True(t, smaller, "some builds do not have all steps")
	page.load(func() { page.choose("build", "") })
	require.Equal(t, len(g.Steps), page.count(".node"))

	page.eval(nil, `(() => { const el = document.getElementById("search"); el.value = "CAT /API"; el.dispatchEvent(new Event("input")); })()`)
	require.Equal(t, "2 found", page.text("found"))
	require.Equal(t, len(g.Steps)-2, page.count(".node.dim"))

	// there is one timer, whatever was selected before
	page.eval(nil, `(() => {
		const set = window.setTimeout, clear = window.clearTimeout;
		window.timers = new Map();
		window.setTimeout = (f, ms) => { const id = set(f, ms); timers.set(id, ms); return id; };
		window.clearTimeout = id => { timers.delete(id); clear(id); };
	})()`)
	for _, seconds := range []string{"10", "2", "10", "0", "10"} {
		page.choose("refresh", seconds)
	}
	var timers []int
	page.eval(&timers, `[...timers.values()]`)
	require.Equal(t, []int{10_000}, timers)
	page.eval(nil, `window.addEventListener("pagehide", () => sessionStorage.setItem("graph.refresh", JSON.stringify("0")))`) // once is enough
	page.load(func() { page.choose("refresh", "2") })
	require.Equal(t, "2 found", page.text("found"), "the search is kept")

	goOn()
	require.NoError(t, errors.Wrap(<-baked, "bake"))
	require.Empty(t, page.errors)
}

// TestDebugPageLarge lets a browser draw 2,000 steps, and measures the time until they
// can be seen and used.
func TestDebugPageLarge(t *testing.T) {
	requireTestbed(t)
	page := newBrowser(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	address := debugURL(t, d) + "/debug/graph"
	const steps, rows = 2000, 20
	var all []llb.State
	for i := range steps - 1 {
		st := llb.Scratch()
		if i >= rows {
			st = all[i-rows]
		}
		all = append(all, st.File(llb.Mkfile("/file", 0o600, []byte(strconv.Itoa(i))), llb.WithCustomNamef("step %d", i)))
	}
	p := peer{name: "large"}
	require.NoError(t, p.run(t.Context(), newClient(t, d), func(ctx context.Context, b peerBuild) error {
		if _, err := b.solve(ctx, llb.Merge(all[len(all)-rows:])); err != nil {
			return err
		}
		g := getGraph(t, d, "")
		require.Len(t, g.Steps, steps)
		took := func(name string, f func()) time.Duration {
			start := time.Now()
			f()
			page.drawn()
			t.Logf("%s: %s", name, time.Since(start).Round(time.Millisecond))
			return time.Since(start)
		}
		load := took("load", func() { page.open(address) })
		// it is the one thing that anyone waits for
		quick := func(name string, f func()) { require.Less(t, took(name, f), max(load, 5*time.Second), name) }
		require.Equal(t, steps, page.count(".node.registered"))
		quick("search", func() {
			page.eval(nil, `(() => { const el = document.getElementById("search"); el.value = "step 17"; el.dispatchEvent(new Event("input")); })()`)
		})
		require.Equal(t, "111 found", page.text("found")) // 17, 170 to 179, 1700 to 1799
		quick("fit", func() { page.eval(nil, `document.getElementById("fit").click()`) })
		step := g.step(t, "step 0")
		quick("click", func() { page.click(step.Digest) })
		require.Contains(t, page.text("details"), step.Digest)
		quick("zoom", func() {
			page.call("Input.dispatchMouseEvent", map[string]any{"type": "mouseWheel", "x": 300, "y": 300, "deltaX": 0, "deltaY": -600}, nil)
		})
		return nil
	}))
	require.Empty(t, page.errors)
}
