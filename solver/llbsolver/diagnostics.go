package llbsolver

import (
	"context"
	"sync/atomic"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/pkg/errors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// solverForDebug is the solver that was created last. A daemon has only one.
var solverForDebug atomic.Pointer[solver.Solver]

// DebugGraph returns a snapshot of the build graph for debug handlers, and nil before
// a solver has been created.
func DebugGraph() *solver.Graph {
	s := solverForDebug.Load()
	if s == nil {
		return nil
	}
	return s.Graph()
}

// observe logs which behavior the daemon has, and exports the build graph and its
// metrics. It fails if the environment asks for an unknown behavior.
func (s *Solver) observe(mp metric.MeterProvider) error {
	if err := logLazySolves(); err != nil {
		return err
	}
	solverForDebug.Store(s.solver)
	if mp == nil {
		return nil
	}
	if err := registerChainMetrics(mp, s.solver); err != nil {
		bklog.L.WithError(err).Error("failed to register metrics of chained builds")
	}
	return nil
}

// registerChainMetrics exports the statistics of chained builds. All metrics except the
// histogram are computed when they are collected.
func registerChainMetrics(mp metric.MeterProvider, s *solver.Solver) error {
	meter := mp.Meter(instrumentationName)
	definitions, err := meter.Int64ObservableCounter(
		"buildkit.graphload.definitions",
		metric.WithDescription("Definitions that builds solved and registered, whether or not they were built."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	owned, err := meter.Int64ObservableGauge(
		"buildkit.graphload.vertices.owned",
		metric.WithDescription("Vertices that active builds own, once for each build."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	chained, err := meter.Int64ObservableGauge(
		"buildkit.graphload.chains",
		metric.WithDescription("Pairs of active builds of which one is chained on a result of the other, its base."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	lookups, err := meter.Int64ObservableCounter(
		"buildkit.graphload.lookups",
		metric.WithDescription("Requests to sessions by steps to which a session is lent, by who answered: a base that lends its session, a build that builds the step, or none. Other steps are not counted."),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	asked, err := meter.Int64Histogram(
		"buildkit.graphload.lookup.sessions",
		metric.WithDescription("Sessions that were asked per request of a step to which a session is lent."),
		metric.WithExplicitBucketBoundaries(0, 1, 2, 3, 5, 10, 20, 50),
	)
	if err != nil {
		return errors.WithStack(err)
	}
	s.ObserveLookups(func(ctx context.Context, n int) {
		asked.Record(ctx, int64(n))
	})

	answeredBy := func(v string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("answered_by", v)))
	}
	byBase, byBuild, byNone := answeredBy("base"), answeredBy("build"), answeredBy("none")
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := s.ChainStats()
		o.ObserveInt64(definitions, st.Definitions)
		o.ObserveInt64(owned, st.Owned)
		o.ObserveInt64(chained, st.Chained)
		o.ObserveInt64(lookups, st.AnsweredByBase, byBase)
		o.ObserveInt64(lookups, st.AnsweredByBuild, byBuild)
		o.ObserveInt64(lookups, st.Unanswered, byNone)
		return nil
	}, definitions, owned, chained, lookups)
	return errors.WithStack(err)
}
