// Package debuggraph serves the build graph of a solver: as JSON, and to browsers as
// a page that draws it.
package debuggraph

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
)

// Handler serves the graph that source returns. source returns nil if there is no
// graph yet. Clients that accept text/html get the page, unless the query has
// format=json. With build=REF in the query, the handler serves only the steps of that
// build.
//
// The answer has refs and session ids. For a client that can reach the API of the
// daemon, they are as good as a login, so protect the address of the handler like that
// of the API.
func Handler(source func() *solver.Graph) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := source()
		if g == nil {
			http.Error(w, "the solver has not been started", http.StatusServiceUnavailable)
			return
		}
		query := r.URL.Query()
		build := query.Get("build")
		shown := filter(g, build)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Vary", "Accept")
		if query.Get("format") != "json" && strings.Contains(r.Header.Get("Accept"), "text/html") {
			writePage(w, shown, build)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.Encode(shown)
	})
}

// filter returns the graph with the steps that the build owns or builds, and
// their inputs. All builds stay listed.
func filter(g *solver.Graph, build string) *solver.Graph {
	if build == "" {
		return g
	}
	wanted := map[digest.Digest]bool{}
	steps := []solver.GraphStep{}
	for _, step := range slices.Backward(g.Steps) {
		if !slices.Contains(step.Owners, build) && !slices.Contains(step.Jobs, build) && !wanted[step.Digest] {
			continue
		}
		for _, in := range step.Inputs {
			wanted[in] = true
		}
		steps = append(steps, step)
	}
	slices.Reverse(steps)
	return &solver.Graph{Time: g.Time, Builds: g.Builds, Steps: steps}
}
