package debuggraph

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// chain returns a graph of two builds: base owns two steps, and child has another step
// that is chained on them.
func chain() *solver.Graph {
	now := time.Date(2026, 11, 2, 15, 4, 5, 0, time.UTC)
	owner := []string{"ref-base"}
	both := []solver.GraphSession{{ID: "session-base", Build: "ref-base", Lent: true}, {ID: "session-child", Build: "ref-child"}}
	child := both[1:]
	return &solver.Graph{
		Time: now,
		Builds: []solver.GraphBuild{
			{Ref: "ref-base", Session: "session-base", Started: now.Add(-3 * time.Second), ChainedOn: []string{}, Owned: 2},
			{Ref: "ref-child", Session: "session-child", Started: now.Add(-2 * time.Second), ChainedOn: []string{"ref-base"}, Active: 3},
		},
		Steps: []solver.GraphStep{
			{Digest: "sha256:a", Name: "[base 1/2] FROM img", Status: solver.GraphDone, Inputs: []digest.Digest{}, Owners: owner, Jobs: []string{"ref-child"}, Sessions: both},
			{Digest: "sha256:b", Name: "[base 2/2] RUN <script>alert(1)</script>", Status: solver.GraphRunning, Inputs: []digest.Digest{"sha256:a"}, Owners: owner, Jobs: []string{"ref-child"}, Sessions: both},
			{Digest: "sha256:c", Name: "[child] RUN make", Status: solver.GraphWaiting, Inputs: []digest.Digest{"sha256:b"}, Owners: []string{}, Jobs: []string{"ref-child"}, Sessions: child},
			{Digest: "sha256:d", Name: "other", Status: solver.GraphWaiting, Inputs: []digest.Digest{}, Owners: []string{}, Jobs: []string{"ref-child"}, Sessions: child},
		},
	}
}

func get(t *testing.T, g *solver.Graph, url, accept string) *httptest.ResponseRecorder {
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	req.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	Handler(func() *solver.Graph { return g }).ServeHTTP(w, req)
	return w
}

const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

func TestHandlerJSON(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		url, accept string
		want        []string
	}{
		{"/debug/graph", "", []string{"sha256:a", "sha256:b", "sha256:c", "sha256:d"}},
		{"/debug/graph?format=json", browser, []string{"sha256:a", "sha256:b", "sha256:c", "sha256:d"}},
		{"/debug/graph?build=ref-base", "application/json", []string{"sha256:a", "sha256:b"}},
		{"/debug/graph?build=ref-child", "", []string{"sha256:a", "sha256:b", "sha256:c", "sha256:d"}},
		{"/debug/graph?build=none", "", nil},
	} {
		w := get(t, chain(), tc.url, tc.accept)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "application/json", w.Header().Get("Content-Type"))
		var g solver.Graph
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &g))
		var got []string
		for _, step := range g.Steps {
			got = append(got, step.Digest.String())
		}
		require.Equal(t, tc.want, got, tc.url)
		require.Len(t, g.Builds, 2)
		require.NotContains(t, w.Body.String(), "null", "lists are there when they are empty")
	}
	require.Equal(t, http.StatusServiceUnavailable, get(t, nil, "/debug/graph", "").Code)
}

func TestFilterAddsInputs(t *testing.T) {
	t.Parallel()
	g := chain()
	for i := range g.Steps {
		g.Steps[i].Jobs = nil
	}
	g.Steps[2].Jobs = []string{"ref-child"}
	require.Len(t, filter(g, "ref-child").Steps, 3, "a step is shown with its inputs")
}

var external = regexp.MustCompile(`(?i)(src|href|url|import)\s*[=(]\s*["']?(https?:)?//`)

func TestPage(t *testing.T) {
	t.Parallel()
	w := get(t, chain(), "/debug/graph", browser)
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
	body := w.Body.String()
	policy := map[string]string{}
	for directive := range strings.SplitSeq(w.Header().Get("Content-Security-Policy"), "; ") {
		name, sources, _ := strings.Cut(directive, " ")
		policy[name] = sources
	}
	nonce := policy["script-src"]
	require.Regexp(t, `^'nonce-\w{20,}'$`, nonce)
	require.Equal(t, map[string]string{
		"default-src": "'none'", "style-src": nonce, "script-src": nonce,
		"form-action": "'self'", "frame-ancestors": "'none'", "base-uri": "'none'",
	}, policy)
	require.NotRegexp(t, external, body)
	require.NotContains(t, body, "<script>alert", "names are escaped")
	require.Contains(t, body, "RUN &lt;script&gt;alert(1)&lt;/script&gt;</title>")
	require.Equal(t, 4, strings.Count(body, `class="node `))
	require.Equal(t, 2, strings.Count(body, `class="edge"`))
	require.Equal(t, 2, strings.Count(body, `class="chip lent"`))
	require.Equal(t, 4, strings.Count(body, `class="chip builds"`))

	// the circles of the step that base owns: its session first
	step := body[strings.Index(body, `data-index="1"`):strings.Index(body, `data-index="2"`)]
	require.Regexp(t, `(?s)chip lent.*>A</text>.*chip builds.*>B</text>`, step)
	require.Equal(t, 1, strings.Count(body, "<br>chained on A</span>"))
	shared := chain() // both builds have one session
	for i := range shared.Steps[2].Sessions {
		shared.Steps[2].Sessions[i].ID = "session-base"
	}
	require.Equal(t, "B", newPage(shared, "").Nodes[2].Chips[0].Label)
	body = get(t, chain(), "/debug/graph?build=ref-base", browser).Body.String()
	require.Equal(t, 2, strings.Count(body, `class="node `))
	require.Contains(t, body, `<option value="ref-base" selected>`)
}

func TestPageBounds(t *testing.T) {
	t.Parallel()
	g := randomGraph(maxDrawn + 10)
	for range 20 {
		g.Steps[0].Sessions = append(g.Steps[0].Sessions, solver.GraphSession{ID: "session"})
	}
	p := newPage(g, "")
	require.Len(t, p.Nodes, maxDrawn)
	require.Equal(t, maxDrawn+10, p.Total)
	require.Len(t, p.Nodes[0].Chips, maxChips)
	require.Equal(t, 20-maxChips, p.Nodes[0].More)
	require.Equal(t, "A Z A1 Z2", strings.Join([]string{buildLabel(0), buildLabel(25), buildLabel(26), buildLabel(77)}, " "))
}

func randomGraph(n int) *solver.Graph {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same graph each time
	g := &solver.Graph{}
	for i := range n {
		step := solver.GraphStep{Digest: digest.FromString(fmt.Sprint(i)), Name: fmt.Sprintf("[stage %d] RUN step %d of a long build", i/10, i), Status: solver.GraphWaiting}
		for range rnd.IntN(3) {
			if i > 0 {
				step.Inputs = append(step.Inputs, g.Steps[max(0, i-1-rnd.IntN(12))].Digest)
			}
		}
		g.Steps = append(g.Steps, step)
	}
	return g
}

// TestLayout checks that no two steps are at the same place, and that inputs are on
// the left, unless the graph wraps to the next line.
func TestLayout(t *testing.T) {
	t.Parallel()
	wide, long := &solver.Graph{}, &solver.Graph{}
	for i := range 2000 {
		wide.Steps = append(wide.Steps, solver.GraphStep{Digest: digest.FromString(fmt.Sprint(i)), MergedInto: digest.FromString("0")})
		step := solver.GraphStep{Digest: digest.FromString(fmt.Sprint(i))}
		if i > 0 {
			step.Inputs = []digest.Digest{long.Steps[i-1].Digest}
		}
		long.Steps = append(long.Steps, step)
	}
	alone := &solver.Graph{Steps: make([]solver.GraphStep, 100)}
	for i := range alone.Steps {
		alone.Steps[i].Digest = digest.FromString(fmt.Sprint(i))
	}
	for name, g := range map[string]*solver.Graph{"chain": chain(), "random": randomGraph(2000), "wide": wide, "long": long, "alone": alone, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			places, width, height := layout(g.Steps)
			require.Less(t, time.Since(start), 5*time.Second)
			index := indexOf(g.Steps)
			seen := map[position]bool{}
			for i, p := range places {
				require.False(t, seen[p], "two steps at %v", p)
				seen[p] = true
				require.LessOrEqual(t, p.x+nodeWidth, width)
				require.LessOrEqual(t, p.y+nodeHeight, height)
				for _, in := range g.Steps[i].Inputs {
					q := places[index[in]]
					require.True(t, q.x < p.x || q.y < p.y, "input at %v of step at %v", q, p)
				}
			}
			require.LessOrEqual(t, width, maxColumns*(nodeWidth+gapX))
		})
	}
}

func BenchmarkPage(b *testing.B) {
	g := randomGraph(2000)
	h := Handler(func() *solver.Graph { return g })
	for b.Loop() {
		req := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/debug/graph", nil)
		req.Header.Set("Accept", browser)
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
}
