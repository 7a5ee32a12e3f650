package llbsolver

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/graphload"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// loadedDefinition is a definition after source policy, entitlements and LLB have
// been checked. It has everything that is needed to build the definition. Loading has
// none of the effects of building.
type loadedDefinition struct {
	edge   solver.Edge
	prune  map[string]bool // cache mounts that a no-cache build starts from empty
	caches []solver.CacheManager
}

// lazyDefinition is the definition of a ref, once it has been loaded. The order of
// calls protects it: Solve loads it before it returns the ref, and later evaluations
// run one at a time.
type lazyDefinition struct {
	done bool
	def  *loadedDefinition
	err  error

	ahead *solver.Ahead // also set by Solve, if the client receives the ref
}

// job returns the job that the bridge solves for. Nested builds have no job: the
// daemon builds what they solve at once, and releases it with their parent.
func (b *llbBridge) job() (*solver.Job, bool) {
	j, ok := b.builder.(*solver.Job)
	return j, ok && graphload.Enabled()
}

// Solve solves req and loads the refs of the result into the graph. A definition
// that cannot be loaded does not fail Solve: the evaluation returns the error.
//
// If a client calls Solve, the results that it passes in chain the job on the jobs that
// returned them. What a frontend solves for itself does not chain.
func (b *provenanceBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	j, ok := b.job()
	if !ok {
		return b.solve(ctx, req, sid)
	}
	client := b.req == nil && b.rootReq != nil // bridges of SBOM scanners have neither
	var bases []*solver.Job
	if client {
		bases = chainOnBases(j, req)
	}
	res, err := b.solve(ctx, req, sid)
	if err == nil && res != nil {
		if client {
			b.noteSession(ctx, j, sid)
		}
		err = res.EachRef(func(ref solver.ResultProxy) error {
			if ref == nil {
				return nil
			}
			if rp, ok := ref.(*resultProxy); ok {
				rp.load(ctx)
			}
			if op := resultOp(ref.Definition()); client && op != nil {
				j.AddResult(op)
			}
			return nil
		})
	}
	if client && graphload.Ahead() {
		return b.evaluateAhead(ctx, j, req, bases, res, err)
	}
	return res, err
}

// sessionTimeout is how long the session of a client may take to connect after its
// first request.
const sessionTimeout = 5 * time.Second

// noteSession tells the job about its session, at once if the session is connected.
func (b *llbBridge) noteSession(ctx context.Context, j *solver.Job, sid string) {
	if b.sm == nil || sid == "" || j.HasSession() {
		return
	}
	if c, err := b.sm.Get(ctx, sid, true); err == nil && c != nil {
		j.SetSession(c)
		return
	}
	go func() {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), sessionTimeout, errors.WithStack(context.DeadlineExceeded))
		defer cancel()
		if c, err := b.sm.Get(ctx, sid, false); err == nil {
			j.SetSession(c)
		}
	}()
}

// chainOnBases chains j on the jobs that returned a result which is part of req, and
// returns them. A result is part of req if it is any op of an input, or an ancestor of
// the result of the definition. The result itself does not count: a build that solves
// it again does not need the other build.
func chainOnBases(j *solver.Job, req frontend.SolveRequest) (bases []*solver.Job) {
	for _, def := range req.FrontendInputs {
		for _, op := range def.GetDef() {
			bases = append(bases, j.ChainOn(op)...)
		}
	}
	if result := resultOp(req.Definition); result != nil {
		var ancestors map[string]struct{}
		for _, op := range req.Definition.Def {
			if !j.IsResult(op) {
				continue
			}
			if ancestors == nil {
				ancestors = ancestorsOf(req.Definition, result)
			}
			if _, ok := ancestors[string(digest.FromBytes(op))]; ok {
				bases = append(bases, j.ChainOn(op)...)
			}
		}
	}
	return bases
}

// resultOp returns the encoded op of the result of a definition, or nil.
func resultOp(def *pb.Definition) []byte {
	dgst, err := definitionHeadDigest(def)
	if err != nil || dgst == "" {
		return nil
	}
	for _, op := range slices.Backward(def.Def) { // ops come after their inputs
		if digest.FromBytes(op) == dgst {
			return op
		}
	}
	return nil
}

// ancestorsOf returns the digests of the inputs of result, and of their inputs.
func ancestorsOf(def *pb.Definition, result []byte) map[string]struct{} {
	ops := make(map[string][]byte, len(def.Def))
	for _, dt := range def.Def {
		ops[string(digest.FromBytes(dt))] = dt
	}
	ancestors := map[string]struct{}{}
	for queue := [][]byte{result}; len(queue) > 0; queue = queue[1:] {
		var parsed pb.Op
		if err := parsed.UnmarshalVT(queue[0]); err != nil {
			return nil
		}
		for _, in := range parsed.Inputs {
			if _, ok := ancestors[in.Digest]; !ok {
				ancestors[in.Digest] = struct{}{}
				if dt, ok := ops[in.Digest]; ok {
					queue = append(queue, dt)
				}
			}
		}
	}
	return ancestors
}

// load loads the definition of the ref and makes the job of the build the owner of
// its vertices. The outcome is remembered, because loading can ask a policy of the
// client, which must not be asked twice. A load is retried only if it was canceled or
// reached the deadline of its request.
func (rp *resultProxy) load(ctx context.Context) (*loadedDefinition, error) {
	j, ok := rp.b.job()
	if !ok {
		return rp.b.loadDefinition(ctx, rp.req.Definition, rp.req.CacheImports, rp.req.SourcePolicies)
	}
	ld := &rp.lazy
	if ld.done {
		return ld.def, ld.err
	}
	span, ctx := tracing.StartSpan(ctx, "load definition")
	def, err := rp.b.loadDefinition(ctx, rp.req.Definition, rp.req.CacheImports, rp.req.SourcePolicies)
	if err == nil {
		err = j.Register(def.edge)
	}
	tracing.FinishWithError(span, err)
	if err != nil && (context.Cause(ctx) != nil || errors.Is(err, context.DeadlineExceeded) || grpcerrors.Code(err) == codes.DeadlineExceeded) {
		return nil, err
	}
	if err == nil && j.HasBases() {
		lendCaches(j, def.edge.Vertex, map[solver.Vertex]struct{}{})
	}
	ld.done, ld.def, ld.err = true, def, err
	return def, err
}

// lendCaches adds the cache imports that the bases of j have for v and its
// ancestors.
func lendCaches(j *solver.Job, v solver.Vertex, visited map[solver.Vertex]struct{}) {
	if _, ok := visited[v]; ok {
		return
	}
	visited[v] = struct{}{}
	if v, ok := v.(*vertex); ok {
		v.options.CacheSources = append(slices.Clip(v.options.CacheSources), j.LentCaches(v.digest)...)
	}
	for _, in := range v.Inputs() {
		lendCaches(j, in.Vertex, visited)
	}
}

// evaluate loads the definition of the ref, unless it has been loaded, and builds it.
func (rp *resultProxy) evaluate(ctx context.Context) (solver.CachedResultWithProvenance, error) {
	def, err := rp.load(ctx)
	if err != nil {
		return nil, err
	}
	if err := rp.lazy.ahead.Err(); err != nil {
		return nil, err
	}
	return rp.b.build(ctx, def)
}

// build does what loading has deferred, and builds the definition.
func (b *llbBridge) build(ctx context.Context, def *loadedDefinition) (solver.CachedResultWithProvenance, error) {
	if j, ok := b.job(); ok && j.Err() != nil {
		return nil, j.Err()
	}
	def.startCaches()
	if len(def.prune) > 0 {
		if err := b.eachWorker(func(w worker.Worker) error {
			return w.PruneCacheMounts(ctx, def.prune)
		}); err != nil {
			return nil, err
		}
	}
	return b.builder.Build(ctx, def.edge)
}

func (def *loadedDefinition) startCaches() {
	for _, cm := range def.caches {
		if dcm, ok := cm.(*deferredCacheManager); ok {
			dcm.start()
		}
	}
}

// evaluateRefs evaluates all refs of a forced solve concurrently, including those of
// attestations. The first error cancels the other evaluations and is returned. Results
// that are complete by then are released, because the client does not receive their
// refs. Ops acquire the parallelism of their worker, which limits how many run at once.
func evaluateRefs(ctx context.Context, res *frontend.Result) error {
	if !graphload.Enabled() {
		return res.EachRef(func(ref solver.ResultProxy) error {
			_, err := ref.Result(ctx)
			return err
		})
	}
	var mu sync.Mutex
	var evaluated []solver.ResultProxy
	eg, egCtx := errgroup.WithContext(ctx)
	res.EachRef(func(ref solver.ResultProxy) error {
		eg.Go(func() error {
			_, err := ref.Result(egCtx)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				evaluated = append(evaluated, ref)
			}
			return err
		})
		return nil
	})
	err := eg.Wait()
	if err != nil {
		for _, ref := range evaluated {
			ref.Release(context.WithoutCancel(ctx))
		}
	}
	return err
}
