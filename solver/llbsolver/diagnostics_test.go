package llbsolver

import (
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestDebugGraph(t *testing.T) {
	b := newBench(t)
	solverForDebug.Store(b.solver)
	t.Cleanup(func() { solverForDebug.Store(nil) })
	_, br := b.job("base")
	lazySolve(t, br, frontend.SolveRequest{Definition: marshal(t, run(llb.Image("docker.io/library/img"), "base"))})
	g := DebugGraph()
	require.Len(t, g.Steps, 2)
	require.Equal(t, "docker-image://docker.io/library/img:latest", g.Steps[0].Name)
	require.Equal(t, "base", g.Steps[1].Name)
	require.Equal(t, solver.GraphRegistered, g.Steps[1].Status)
	require.Equal(t, "base", g.Steps[1].Owners[0])

	solverForDebug.Store(nil)
	require.Nil(t, DebugGraph())
}

// metrics returns the values by name and attribute.
func metrics(t *testing.T, reader *sdkmetric.ManualReader) map[string]int64 {
	var rm metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &rm))
	out := map[string]int64{}
	add := func(name string, attrs attribute.Set, value int64) {
		for _, kv := range attrs.ToSlice() {
			name += " " + kv.Value.AsString()
		}
		out[name] = value
	}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				require.True(t, data.IsMonotonic, m.Name)
				for _, dp := range data.DataPoints {
					add(m.Name, dp.Attributes, dp.Value)
				}
			case metricdata.Gauge[int64]:
				for _, dp := range data.DataPoints {
					add(m.Name, dp.Attributes, dp.Value)
				}
			case metricdata.Histogram[int64]:
				for _, dp := range data.DataPoints {
					add(m.Name+".count", dp.Attributes, int64(dp.Count))
					add(m.Name+".sum", dp.Attributes, dp.Sum)
				}
			}
		}
	}
	return out
}

func TestChainMetrics(t *testing.T) {
	b := newBench(t)
	reader := sdkmetric.NewManualReader()
	mp := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	require.NoError(t, registerChainMetrics(mp, b.solver))
	require.Equal(t, map[string]int64{
		"buildkit.graphload.definitions": 0, "buildkit.graphload.vertices.owned": 0, "buildkit.graphload.chains": 0,
		"buildkit.graphload.lookups base": 0, "buildkit.graphload.lookups build": 0, "buildkit.graphload.lookups none": 0,
	}, metrics(t, reader))

	state := run(llb.Image("docker.io/library/img"), "base")
	base, baseBridge := b.job("base")
	lazySolve(t, baseBridge, frontend.SolveRequest{Definition: marshal(t, state)})
	_, childBridge := b.job("child")
	b.lookup = func(name string, it session.Iterator) {
		if name == "base" {
			it.(session.LookupObserver).LookupDone(t.Context(), 1, true, true)
		}
	}
	require.NoError(t, evaluate(t, lazySolve(t, childBridge, frontend.SolveRequest{Definition: marshal(t, run(state, "child"))})))
	want := map[string]int64{
		"buildkit.graphload.definitions": 2, "buildkit.graphload.vertices.owned": 5, "buildkit.graphload.chains": 1,
		"buildkit.graphload.lookups base": 1, "buildkit.graphload.lookups build": 0, "buildkit.graphload.lookups none": 0,
		"buildkit.graphload.lookup.sessions.count": 1, "buildkit.graphload.lookup.sessions.sum": 1,
	}
	require.Equal(t, want, metrics(t, reader))
	require.NoError(t, base.Discard())
	want["buildkit.graphload.vertices.owned"], want["buildkit.graphload.chains"] = 3, 0
	require.Equal(t, want, metrics(t, reader))
}

func TestLazySolveSpans(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	ctx, span := tp.Tracer("").Start(t.Context(), "Solve")
	b := newBench(t)
	_, br := b.job("base")
	def := marshal(t, run(llb.Image("docker.io/library/img"), "base"))
	deny := []*spb.Policy{{Rules: []*spb.Rule{{
		Action:   spb.PolicyAction_DENY,
		Selector: &spb.Selector{Identifier: "*", MatchType: spb.MatchType_WILDCARD},
	}}}}
	for _, pol := range [][]*spb.Policy{nil, deny} {
		_, err := br.Solve(ctx, frontend.SolveRequest{Definition: def, SourcePolicies: pol}, "")
		require.NoError(t, err)
	}
	span.End()

	var names, failed []string
	for _, s := range rec.Ended() {
		names = append(names, s.Name())
		require.Equal(t, span.SpanContext().TraceID(), s.SpanContext().TraceID())
		if len(s.Events()) > 0 {
			failed = append(failed, s.Name())
		}
	}
	require.Equal(t, []string{"load definition", "load definition", "Solve"}, names)
	require.Equal(t, []string{"load definition"}, failed)
}
