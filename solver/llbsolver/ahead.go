package llbsolver

import (
	"context"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/result"
	"github.com/pkg/errors"
)

// aheadRef is a ref of a client that can be evaluated before the client asks for it.
type aheadRef struct {
	solver.ResultProxy
	ahead *solver.Ahead
}

// Result implements solver.ResultProxy.
func (r *aheadRef) Result(ctx context.Context) (res solver.CachedResult, err error) {
	err = r.ahead.Evaluate(ctx, func(ctx context.Context) error {
		res, err = r.ResultProxy.Result(ctx)
		return err
	})
	return res, err
}

// Release implements solver.ResultProxy.
func (r *aheadRef) Release(ctx context.Context) error {
	r.ahead.Release()
	return r.ResultProxy.Release(ctx)
}

// evaluateAhead returns the result of a client's request, or its error, with refs
// that are evaluated ahead, as soon as one of the bases evaluates.
//
// These refs are not evaluated ahead: refs of a build without a gateway client, because
// they are evaluated at once; refs of a subrequest, which asks for a description;
// definitions that empty cache mounts, because steps of the base may use them; and
// definitions that could not be loaded.
func (b *provenanceBridge) evaluateAhead(ctx context.Context, j *solver.Job, req frontend.SolveRequest, bases []*solver.Job, res *frontend.Result, err error) (*frontend.Result, error) {
	if req.Evaluate {
		j.Evaluated(err)
	}
	if err != nil || res == nil {
		return res, err
	}
	_, subrequest := req.FrontendOpt["requestid"]
	lazy := !req.Evaluate && !subrequest && b.rootReq.Frontend == "" && b.rootReq.Definition == nil
	return result.ConvertResult(res, func(ref solver.ResultProxy) (solver.ResultProxy, error) {
		opt := solver.AheadOpt{}
		rp, ok := solver.UnsplitResultProxy(ref).(*resultProxy)
		ok = ok && lazy && rp.lazy.ahead == nil && rp.lazy.def != nil && len(rp.lazy.def.prune) == 0
		if ok {
			opt = solver.AheadOpt{Edge: rp.lazy.def.edge, Bases: bases, Ready: rp.lazy.def.waitForCaches}
		}
		a := j.EvaluateAhead(ctx, opt)
		if ok {
			rp.lazy.ahead = a
		}
		return &aheadRef{ResultProxy: ref, ahead: a}, nil
	})
}

// waitForCaches starts the cache imports of the definition, and returns when all have
// succeeded or failed. If the scheduler queried an import that is not complete, it would
// wait for it, and the base would wait too.
func (def *loadedDefinition) waitForCaches(ctx context.Context) error {
	def.startCaches()
	for _, cm := range def.caches {
		dcm, ok := cm.(*deferredCacheManager)
		if !ok {
			continue
		}
		if lcm, ok := dcm.start().(*lazyCacheManager); ok {
			select {
			case <-lcm.waitCh:
			case <-ctx.Done():
				return errors.WithStack(context.Cause(ctx))
			}
		}
	}
	return nil
}
