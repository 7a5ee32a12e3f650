package llbsolver

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/flightcontrol"
	"github.com/moby/buildkit/util/graphload"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// loadedDefinition is a definition after source policy, entitlements and LLB
// have been checked: everything that is needed to build it, with none of the
// effects of building it.
type loadedDefinition struct {
	edge   solver.Edge
	prune  map[string]bool // cache mounts that a no-cache build starts from empty
	caches []solver.CacheManager
}

// registrar is a solver.Builder that can own vertices without building them.
// Jobs are, the builders of nested builds are not: what they build is kept by
// the state of their parent, and it is built at once.
type registrar interface {
	Register(context.Context, solver.Edge) error
	RegisterDigests(context.Context, []digest.Digest, func() []solver.VertexInfo) error
	Owns(digest.Digest) bool
	Refuse(context.Context, error)
}

// evaluator is a solver.Builder that can be discarded while it builds. Jobs
// are: requests of a gateway client are not waited for when its build ends.
type evaluator interface {
	Evaluate(context.Context, solver.Edge) (solver.CachedResultWithProvenance, error)
	ReleaseLeft(released func() bool, release func())
}

var (
	_ registrar = (*solver.Job)(nil)
	_ evaluator = (*solver.Job)(nil)
)

// lazyDefinition loads the definition of a ref at most once.
type lazyDefinition struct {
	g          flightcontrol.Group[*loadedDefinition]
	guarded    sync.Once  // has the builder release the result if nobody else does
	mu         sync.Mutex // protects the rest
	registered bool
	done       bool
	def        *loadedDefinition
	err        error
}

// Solve solves req and makes the build an owner of the result unless it is
// evaluated at once. Refs of a forced solve are evaluated concurrently.
func (b *provenanceBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	if !graphload.Enabled() {
		return b.solve(ctx, req, sid)
	}
	evaluate := req.Evaluate
	req.Evaluate = false
	res, err := b.solve(ctx, req, sid)
	if err != nil {
		return nil, err
	}
	if evaluate {
		if err := evaluateRefs(ctx, res); err != nil {
			return nil, err
		}
		return res, nil
	}
	err = res.EachRef(func(ref solver.ResultProxy) error {
		if rp, ok := ref.(*resultProxy); ok {
			rp.register(ctx)
		}
		return nil
	})
	return res, err
}

// guard has the result of the ref released when the build has ended, if nobody
// else does. A forced solve that fails returns none of its refs, also not those
// that succeeded, and one that succeeds may return them when the client is gone.
func (rp *resultProxy) guard() {
	if e, ok := rp.b.builder.(evaluator); ok && graphload.Enabled() {
		rp.lazy.guarded.Do(func() { e.ReleaseLeft(rp.isReleased, rp.releaseLeft) })
	}
}

// releaseLeft releases the result of the ref if it has not been released.
func (rp *resultProxy) releaseLeft() {
	rp.mu.Lock()
	left := rp.v != nil && !rp.released
	rp.mu.Unlock()
	if left {
		rp.Release(context.TODO())
	}
}

func (rp *resultProxy) isReleased() bool {
	rp.mu.Lock()
	defer rp.mu.Unlock()
	return rp.released
}

// evaluateRefs evaluates all refs of res, attestations included. The first
// error cancels the others and is returned. How much runs at once is up to the
// ops, that acquire the parallelism of their worker.
func evaluateRefs(ctx context.Context, res *frontend.Result) error {
	eg, ctx := errgroup.WithContext(ctx)
	err := res.EachRef(func(ref solver.ResultProxy) error {
		eg.Go(func() error {
			_, err := ref.Result(ctx)
			return err
		})
		return nil
	})
	if err2 := eg.Wait(); err2 != nil {
		return err2
	}
	return err
}

// load returns the loaded definition of the ref. The outcome is remembered,
// because loading can ask a policy of the client that must not be asked twice;
// only a load that was canceled, or came to the deadline of its request, is tried
// again.
func (rp *resultProxy) load(ctx context.Context) (*loadedDefinition, error) {
	ld := &rp.lazy
	return ld.g.Do(ctx, "load", func(ctx context.Context) (*loadedDefinition, error) {
		ld.mu.Lock()
		defer ld.mu.Unlock()
		if ld.done {
			return ld.def, ld.err
		}
		span, ctx := tracing.StartSpan(noDeadline{ctx}, "load definition")
		def, err := rp.b.loadDefinition(ctx, rp.req.Definition, rp.req.CacheImports, rp.req.SourcePolicies)
		tracing.FinishWithError(span, err)
		if err != nil && context.Cause(ctx) != nil {
			if errdefs.IsCanceled(ctx, err) {
				return nil, err
			}
			if errors.Is(err, context.DeadlineExceeded) || grpcerrors.Code(err) == codes.DeadlineExceeded {
				// a ref remembers what does not say that it was canceled
				return nil, errors.Wrap(context.Canceled, err.Error())
			}
		}
		ld.done, ld.def, ld.err = true, def, err
		return def, err
	})
}

// noDeadline hides the deadline of a context, which ends as before. It is that of
// whoever came first; others may wait for the same thing, and a call that is given
// it can end at it before the context does.
type noDeadline struct{ context.Context }

func (noDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }

// register makes the build the owner of the definition of the ref. The
// definition is loaded for that only if its digests, its cache imports or its
// policy need it; otherwise that is left to the evaluation. A definition that
// cannot be loaded does not fail a lazy solve: the error waits for the
// evaluation.
func (rp *resultProxy) register(ctx context.Context) {
	r, ok := rp.b.builder.(registrar)
	if !ok || !rp.claim() {
		return
	}
	span, ctx := tracing.StartSpan(ctx, "register definition", trace.WithAttributes(attribute.Int("vertices", max(0, len(rp.req.Definition.Def)-1))))
	err := rp.registerWith(ctx, r)
	if err != nil {
		r.Refuse(ctx, err)
	}
	tracing.FinishWithError(span, err)
}

func (rp *resultProxy) registerWith(ctx context.Context, r registrar) error {
	if dgsts, ok := rp.b.vertexDigests(ctx, &rp.req, r); ok {
		def := rp.req.Definition
		return r.RegisterDigests(ctx, dgsts, func() []solver.VertexInfo { return describeDefinition(def) })
	}
	def, err := rp.load(ctx)
	if err != nil {
		return err
	}
	return r.Register(ctx, def.edge)
}

// claim reports if the ref has been neither registered nor evaluated yet. A
// nested frontend has registered its refs before they are returned here again.
func (rp *resultProxy) claim() bool {
	rp.lazy.mu.Lock()
	defer rp.lazy.mu.Unlock()
	claimed := !rp.lazy.done && !rp.lazy.registered
	rp.lazy.registered = true
	return claimed
}

// evaluate loads the definition of the ref, if that has not been done, and
// builds it. The results that come with an error are released together with the
// ref, so an error that comes later is returned without them.
func (rp *resultProxy) evaluate(ctx context.Context) (solver.CachedResultWithProvenance, error) {
	def, err := rp.load(ctx)
	if err != nil {
		return nil, err
	}
	rp.guard()
	res, err := rp.b.build(ctx, def)
	if err != nil && rp.isReleased() {
		return nil, errors.Errorf("evaluating released result: %v", err)
	}
	return res, err
}

// build does what loading has put off and builds the definition.
func (b *llbBridge) build(ctx context.Context, def *loadedDefinition) (solver.CachedResultWithProvenance, error) {
	for _, cm := range def.caches {
		if dcm, ok := cm.(*deferredCacheManager); ok {
			dcm.start()
		}
	}
	if len(def.prune) > 0 {
		if err := b.eachWorker(func(w worker.Worker) error {
			return w.PruneCacheMounts(ctx, def.prune)
		}); err != nil {
			return nil, err
		}
	}
	if e, ok := b.builder.(evaluator); ok && graphload.Enabled() {
		return e.Evaluate(ctx, def.edge)
	}
	return b.builder.Build(ctx, def.edge)
}
