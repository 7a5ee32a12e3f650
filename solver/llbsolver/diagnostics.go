package llbsolver

import (
	"context"
	"sync/atomic"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// solverForDebug is the solver that was created last. A daemon has one.
var solverForDebug atomic.Pointer[solver.Solver]

// DebugGraph returns the build graph of this moment for debug handlers, and
// nil before a solver has been created.
func DebugGraph() *solver.Graph {
	s := solverForDebug.Load()
	if s == nil {
		return nil
	}
	return s.Graph()
}

// observe lets operators see what the new solver does.
func (s *Solver) observe(mp metric.MeterProvider) {
	logLazySolves()
	solverForDebug.Store(s.solver)
	if mp == nil {
		return
	}
	if err := registerOwnerMetrics(mp, s.solver); err != nil {
		bklog.L.WithError(err).Error("failed to register metrics of lazy solves")
	}
}

// registerOwnerMetrics exports the statistics of owners. All but the histogram
// are read when they are collected.
func registerOwnerMetrics(mp metric.MeterProvider, s *solver.Solver) error {
	meter := mp.Meter(instrumentationName)
	solves, err := meter.Int64ObservableCounter(
		"buildkit.graphload.solves",
		metric.WithDescription("Definitions of lazy solves, by result: registered with their build, or refused because they cannot be loaded or the build has ended."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	owned, err := meter.Int64ObservableGauge(
		"buildkit.graphload.vertices.owned",
		metric.WithDescription("Vertices that have an owner now."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	lookups, err := meter.Int64ObservableCounter(
		"buildkit.graphload.lookups",
		metric.WithDescription("Requests of steps to sessions, by who answered: a build that evaluates the step, an owner that does not, or none. Without owners, those of an owner would have been given to the others."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	asked, err := meter.Int64Histogram(
		"buildkit.graphload.lookup.sessions",
		metric.WithDescription("Sessions that were asked per request of a step."),
		metric.WithExplicitBucketBoundaries(0, 1, 2, 3, 5, 10, 20, 50),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	s.ObserveLookups(func(ctx context.Context, n int) {
		asked.Record(ctx, int64(n))
	})

	label := func(k, v string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String(k, v)))
	}
	registered, refused := label("result", "registered"), label("result", "refused")
	byBuild, byOwner, byNone := label("answered_by", "build"), label("answered_by", "owner"), label("answered_by", "none")
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := s.OwnerStats()
		o.ObserveInt64(solves, st.Registered, registered)
		o.ObserveInt64(solves, st.Refused, refused)
		o.ObserveInt64(owned, st.Owned)
		o.ObserveInt64(lookups, st.AnsweredByBuild, byBuild)
		o.ObserveInt64(lookups, st.AnsweredByOwner, byOwner)
		o.ObserveInt64(lookups, st.Unanswered, byNone)
		return nil
	}, solves, owned, lookups)
	return errors.WithStack(err)
}

// describeDefinition describes the vertices of a definition as they will be
// when it is loaded. What cannot be read is left out.
func describeDefinition(def *pb.Definition) []solver.VertexInfo {
	out := make([]solver.VertexInfo, 0, len(def.Def))
	names := make(map[string]string, len(def.Def))
	named := func(dgst string) (solver.Vertex, error) {
		return &vertex{name: names[dgst]}, nil
	}
	for i, dt := range def.Def {
		var op pb.Op
		if i == len(def.Def)-1 || op.Unmarshal(dt) != nil {
			continue
		}
		v := solver.VertexInfo{Digest: digest.FromBytes(dt)}
		if name, err := llbOpName(&op, named); err == nil {
			v.Name = name
		}
		if md := def.Metadata[string(v.Digest)]; md != nil {
			if name, ok := md.Description["llb.customname"]; ok {
				v.Name = name
			}
		}
		names[string(v.Digest)] = v.Name
		seen := map[string]struct{}{}
		for _, in := range op.Inputs {
			if _, ok := seen[in.Digest]; !ok {
				seen[in.Digest] = struct{}{}
				v.Inputs = append(v.Inputs, digest.Digest(in.Digest))
			}
		}
		out = append(out, v)
	}
	return out
}
