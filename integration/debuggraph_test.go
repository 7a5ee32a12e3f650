package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// debugGraph is the answer of /debug/graph.
type debugGraph struct {
	Builds []struct {
		Ref, Session    string
		ChainedOn       []string
		Owned, Building int
	}
	Steps []debugStep
}

type debugStep struct {
	Digest, Name, Status string
	Inputs, Jobs, Owners []string
	Sessions             []debugSession
}

type debugSession struct {
	ID, Build string
	Lent      bool
}

// step returns the only step whose name contains s.
func (g *debugGraph) step(t *testing.T, s string) debugStep {
	t.Helper()
	var found []debugStep
	for _, step := range g.Steps {
		if strings.Contains(step.Name, s) {
			found = append(found, step)
		}
	}
	require.Len(t, found, 1, "steps with %q", s)
	return found[0]
}

func getDebug(t *testing.T, d *testbed.Daemon, url, accept string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://debug"+url, nil)
	require.NoError(t, err)
	req.Header.Set("Accept", accept)
	resp, err := debugClient(t, d).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", dt)
	return string(dt)
}

func getGraph(t *testing.T, d *testbed.Daemon, query string) *debugGraph {
	t.Helper()
	var g debugGraph
	require.NoError(t, json.Unmarshal([]byte(getDebug(t, d, "/debug/graph"+query, "application/json")), &g))
	return &g
}

// getMetrics returns the samples of the change's metrics, by name and by the value of
// the label answered_by.
func getMetrics(t *testing.T, d *testbed.Daemon) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(getDebug(t, d, "/metrics", "")) {
		name, labels, ok := strings.Cut(line, "{")
		if !ok || !strings.HasPrefix(name, "buildkit_graphload_") || strings.HasSuffix(name, "_bucket") {
			continue
		}
		labels, value, ok := strings.Cut(labels, "} ")
		require.True(t, ok, line)
		for label := range strings.SplitSeq(labels, ",") {
			if k, v, _ := strings.Cut(label, "="); k == "answered_by" {
				name += " " + strings.Trim(v, `"`)
			}
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		require.NoError(t, err, line)
		out[name] = n
	}
	return out
}

// heldSecrets returns secrets after it is released.
type heldSecrets struct {
	value   string
	asked   chan struct{}
	release chan struct{}
}

func (h *heldSecrets) GetSecret(ctx context.Context, _ string) ([]byte, error) {
	h.asked <- struct{}{}
	select {
	case <-h.release:
		return []byte(h.value), nil
	case <-ctx.Done():
		return nil, errors.WithStack(context.Cause(ctx))
	}
}

// TestDebugGraph checks chained builds while a step of base waits for its secret: in the
// graph, on the page, in the metrics and in the log.
func TestDebugGraph(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	c := newClient(t, d)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	const value, env = "the-value-of-the-secret", "the-value-of-the-variable"
	state := sh(root, `test "$(cat /run/secrets/token)" = `+value[:3]+`"`+value[3:]+`"`, secretFile("token"), llb.AddEnv("VARIABLE", env), llb.WithCustomName("[base] RUN step"))

	held := &heldSecrets{value: value, asked: make(chan struct{}, 1), release: make(chan struct{})}
	base := peer{name: "base", locals: locals, attach: []session.Attachable{secretsprovider.NewSecretProvider(held)}}
	child := peer{name: "child", secrets: map[string]string{}, locals: locals}
	require.NoError(t, base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		if _, err := b.solve(ctx, state); err != nil {
			return err
		}
		baseSession := b.BuildOpts().SessionID
		g := getGraph(t, d, "")
		require.Len(t, g.Builds, 1)
		require.Equal(t, baseSession, g.Builds[0].Session)
		require.Equal(t, len(g.Steps), g.Builds[0].Owned)
		step := g.step(t, "[base] RUN step")
		require.Equal(t, "registered", step.Status)
		require.Len(t, step.Inputs, 1)
		require.Empty(t, step.Sessions)
		baseRef := g.Builds[0].Ref
		metrics := getMetrics(t, d)
		require.InDelta(t, 1, metrics["buildkit_graphload_definitions_total"], 0)
		require.InDelta(t, len(g.Steps), metrics["buildkit_graphload_vertices_owned"], 0)
		require.Zero(t, metrics["buildkit_graphload_lookups_total base"])

		return child.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			childSession := b.BuildOpts().SessionID
			done := make(chan error, 1)
			go func() {
				done <- b.evaluate(ctx, sh(state, "true", llb.WithCustomName("[child] RUN step")))
			}()
			select {
			case <-held.asked:
			case err := <-done:
				return errors.Wrap(err, "the secret was not asked for")
			}

			g := getGraph(t, d, "")
			step := g.step(t, "[base] RUN step")
			require.Equal(t, "running", step.Status)
			require.Equal(t, baseRef, step.Owners[0])
			require.Len(t, step.Jobs, 1)
			childRef := step.Jobs[0]
			require.NotEqual(t, baseRef, childRef)
			require.Equal(t, []debugSession{{baseSession, baseRef, true}, {childSession, childRef, false}}, step.Sessions)
			require.Len(t, g.Builds, 2)
			require.Empty(t, g.Builds[0].ChainedOn)
			require.Equal(t, []string{baseRef}, g.Builds[1].ChainedOn)
			require.InDelta(t, 1, getMetrics(t, d)["buildkit_graphload_chains"], 0)
			childStep := g.step(t, "[child] RUN step")
			require.Equal(t, "waiting", childStep.Status)
			require.Equal(t, []string{step.Digest}, childStep.Inputs)
			require.Equal(t, []debugSession{{childSession, childRef, false}}, childStep.Sessions, "base lends its session to its own steps only")
			require.Len(t, getGraph(t, d, "?build="+baseRef).Steps, len(g.Steps)-1)

			page := getDebug(t, d, "/debug/graph", "text/html")
			require.Contains(t, page, "[base] RUN step</title>")
			require.Equal(t, len(g.Steps), strings.Count(page, `class="node `))
			for _, answer := range []string{page, getDebug(t, d, "/debug/graph", "")} {
				require.NotContains(t, answer, value)
				require.NotContains(t, answer, env)
			}
			close(held.release)
			return <-done
		})
	}))

	metrics := getMetrics(t, d)
	require.InDelta(t, 2, metrics["buildkit_graphload_lookups_total base"], 0, "the files and the secret of base, for the child: %v", metrics)
	require.Zero(t, metrics["buildkit_graphload_lookups_total none"])
	require.InDelta(t, 2, metrics["buildkit_graphload_lookup_sessions_count"], 0)
	require.Zero(t, metrics["buildkit_graphload_vertices_owned"])
	require.Zero(t, metrics["buildkit_graphload_chains"])
	require.Empty(t, getGraph(t, d, "").Steps)

	log := d.LogTail(-1)
	require.Regexp(t, `level=debug msg="job is chained on another" base=\w+ job=\w+`, log)
	require.NotContains(t, log, value)
}

// TestDebugGraphLarge shows a build of 2,000 steps on the page.
func TestDebugGraphLarge(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	c := newClient(t, d)
	st := llb.Scratch()
	for i := range 2000 {
		st = st.File(llb.Mkfile("/file", 0o600, []byte(strconv.Itoa(i))))
	}
	p := peer{name: "large"}
	require.NoError(t, p.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		start := time.Now()
		if _, err := b.solve(ctx, st); err != nil {
			return err
		}
		solved := time.Since(start)
		start = time.Now()
		page := getDebug(t, d, "/debug/graph", "text/html")
		require.Less(t, time.Since(start), allowance(solved, 10, 10*time.Second))
		require.Equal(t, 2000, strings.Count(page, `class="node registered"`))
		t.Logf("%d bytes in %s", len(page), time.Since(start))
		return nil
	}))
}

// TestQuietLog runs chained builds on a daemon without debug messages. The change logs
// nothing but the line at start.
func TestQuietLog(t *testing.T) {
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Quiet: true})
	c := newClient(t, d)
	state := llb.Scratch().File(llb.Mkfile("/file", 0o600, []byte("1")))
	require.Eventually(t, func() bool { return strings.Contains(d.LogTail(-1), "running server on") }, hangTimeout, 10*time.Millisecond)
	before := d.LogTail(-1)
	require.Equal(t, 1, strings.Count(before, "lazy solves are loaded into the build graph"))

	base, child := peer{name: "base"}, peer{name: "child"}
	require.NoError(t, base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		if _, err := b.solve(ctx, state); err != nil {
			return err
		}
		return child.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			return b.evaluate(ctx, state.File(llb.Mkfile("/other", 0o600, nil)))
		})
	}))
	require.NotEmpty(t, getMetrics(t, d))
	require.Empty(t, strings.TrimPrefix(d.LogTail(-1), before))
}

// TestLazySolveTrace lets the daemon export its traces.
func TestLazySolveTrace(t *testing.T) {
	requireTestbed(t)
	var mu sync.Mutex
	var exported bytes.Buffer
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		io.Copy(&exported, r.Body)
	}))
	t.Cleanup(collector.Close)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + collector.URL + "/v1/traces",
	}})
	p := peer{name: "p"}
	require.NoError(t, p.run(t.Context(), newClient(t, d), func(ctx context.Context, b peerBuild) error {
		ref, err := b.solve(ctx, llb.Scratch().File(llb.Mkfile("/file", 0o600, nil)))
		if err != nil {
			return err
		}
		return ref.Evaluate(ctx)
	}))
	require.NoError(t, d.Stop(), "the rest is exported when the daemon ends")
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, exported.String(), "load definition")
}
