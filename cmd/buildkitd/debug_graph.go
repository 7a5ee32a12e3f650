package main

import (
	"net/http"

	"github.com/moby/buildkit/solver/debuggraph"
	"github.com/moby/buildkit/solver/llbsolver"
)

func setupDebugGraph(m *http.ServeMux) {
	m.Handle("GET /debug/graph", debuggraph.Handler(llbsolver.DebugGraph))
}
