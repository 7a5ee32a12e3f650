package solver

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
)

// observedOp notes if the op of an edge failed. A state remembers the failure
// of its op for as long as it lives. That is right while a job is building it,
// but a failed state must not be kept for an owner: another build that comes
// later would be given an old error instead of being tried.
//
// It also notes how far the op is, for those who look at the graph.
type observedOp struct {
	activeOp
	st     *state
	since  time.Time
	failed atomic.Bool
	phase  atomic.Int32 // opPhase
}

// newEdge creates an edge whose op is observed. It has none when it is made to
// be merged into another edge before its state has been built.
func newEdge(ed Edge, op activeOp, index *edgeIndex) *edge {
	if so, ok := op.(*sharedOp); ok && so != nil {
		op = &observedOp{activeOp: so, st: so.st, since: time.Now()}
	}
	return newOpEdge(ed, op, index)
}

// observe notes an error that the state may have remembered. What it has not is
// canceled by type: an error that only looks like it, as one of a session whose
// client is gone, can have been there before the cancellation.
func (op *observedOp) observe(ctx context.Context, err error) {
	if err == nil || context.Cause(ctx) != nil && errors.Is(err, context.Canceled) {
		return
	}
	op.failed.Store(true)
	jl := op.st.solver
	jl.mu.Lock()
	defer jl.mu.Unlock()
	if jl.actives[op.st.vtx.Digest()] == op.st {
		jl.owners.fail(op.st)
	}
	// the job that has run it may have ended, and what depends on it is kept
	jl.dropFailed()
}

func (op *observedOp) CacheMap(ctx context.Context, index int) (*cacheMapResp, error) {
	resp, err := op.activeOp.CacheMap(ctx, index)
	op.observe(ctx, err)
	return resp, err
}

func (op *observedOp) Exec(ctx context.Context, inputs []Result) ([]Result, []ExportableCacheKey, func(context.Context) context.Context, error) {
	op.setPhase(opRunning)
	outputs, exporters, ctxOpts, err := op.activeOp.Exec(ctx, inputs)
	op.observe(ctx, err)
	if err != nil {
		op.setPhase(opWaiting)
	} else {
		op.setPhase(opDone)
	}
	return outputs, exporters, ctxOpts, err
}

func (op *observedOp) LoadCache(ctx context.Context, rec *CacheRecord) (Result, func(context.Context) context.Context, error) {
	res, ctxOpts, err := op.activeOp.LoadCache(ctx, rec)
	if err == nil {
		op.setPhase(opCached)
	}
	return res, ctxOpts, err
}

func (op *observedOp) setPhase(p opPhase) {
	op.phase.Store(int32(p))
}

func (op *observedOp) CalcSlowCache(ctx context.Context, index Index, p PreprocessFunc, f ResultBasedCacheFunc, res Result) (digest.Digest, error) {
	dgst, err := op.activeOp.CalcSlowCache(ctx, index, p, f, res)
	op.observe(ctx, err)
	return dgst, err
}

// ops returns the ops that serve the edges of the state, its own or those of
// the edges they were merged into.
// called with solver lock
func (s *state) ops() []*observedOp {
	out := make([]*observedOp, 0, len(s.edges))
	for _, e := range s.edges {
		for e.owner != nil {
			e = e.owner
		}
		if op, ok := e.op.(*observedOp); ok {
			out = append(out, op)
		}
	}
	return out
}

// hasFailed reports if an op of the state, or one that it depends on and whose
// failure has been spread, failed.
// called with solver lock
func (s *state) hasFailed() bool {
	return s.opFailed() || s.solver.owners.hasFailed(s)
}

// opFailed reports if an op of the state failed.
// called with solver lock
func (s *state) opFailed() bool {
	return slices.ContainsFunc(s.ops(), func(op *observedOp) bool { return op.failed.Load() })
}

// spreadFailures marks the states that depend on a failed one before a job
// goes, which may have met the failure without running what failed. A failed
// state is not kept for its owners, and a state must not outlive its inputs.
func (jl *Solver) spreadFailures() {
	if jl.owners.anyFailed() {
		jl.mu.Lock()
		defer jl.mu.Unlock()
		jl.markFailed()
	}
}

// sweepFailures drops what has been kept although a state that it depends on
// has been dropped when a job went. It can have failed after spreadFailures,
// or it is another job that has built it.
func (jl *Solver) sweepFailures() {
	if jl.owners.anyDropped() {
		jl.mu.Lock()
		defer jl.mu.Unlock()
		jl.dropFailed()
	}
}

// markFailed marks the states that depend on one that failed or is gone.
// called with solver lock
func (jl *Solver) markFailed() {
	failed := make(map[*state]bool, len(jl.actives))
	var visit func(*state) bool
	visit = func(st *state) bool {
		if res, ok := failed[st]; ok {
			return res
		}
		res := st.hasFailed()
		for _, in := range st.vtx.Inputs() {
			if res {
				break
			}
			inSt, ok := jl.actives[in.Vertex.Digest()]
			res = !ok || visit(inSt)
		}
		failed[st] = res
		if res {
			jl.owners.fail(st)
		}
		return res
	}
	for _, st := range jl.actives {
		visit(st)
	}
}

// dropFailed deletes the failed states that nobody but owners has, and what
// depends on them.
// called with solver lock
func (jl *Solver) dropFailed() {
	jl.markFailed()
	for key, st := range jl.actives {
		st.mu.Lock()
		if len(st.jobs) == 0 && len(st.parents) == 0 && st.hasFailed() {
			jl.deleteIfUnreferenced(key, st)
		}
		st.mu.Unlock()
	}
	jl.owners.forgetDropped()
}
