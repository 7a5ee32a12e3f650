package build

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/util/apicaps"
)

// capGatewaySolveLoad is the gateway capability of a daemon that loads lazily
// solved results into its build graph. The steps of a parent use the parent's
// session there, whichever target is evaluated first.
const capGatewaySolveLoad apicaps.CapID = "gateway.solve.load"

// linkedTargetBuild is the state of linked targets for the build of one of them.
type linkedTargetBuild struct {
	*linkedTargetState
	// cancelEvaluate is nil if the daemon needs targets to be evaluated in order.
	cancelEvaluate context.CancelCauseFunc
}

// forBuild returns the state for a build with the daemon of c, and the context in
// which its target is to be evaluated.
func (s *linkedTargetState) forBuild(ctx context.Context, c gateway.Client) (*linkedTargetBuild, context.Context) {
	b := &linkedTargetBuild{linkedTargetState: s}
	if caps := c.BuildOpts().Caps; caps.Contains(capGatewaySolveLoad) {
		ctx, b.cancelEvaluate = context.WithCancelCause(ctx)
	}
	return b, ctx
}

// run is linkedTargetState.run, but evaluates the target beside its parents if the
// daemon allows that. The outcome is the same. A target whose parent fails is
// aborted, even if its own evaluation failed first, because it probably failed in a
// step of the parent. A target does not count as evaluated before its parents.
func (b *linkedTargetBuild) run(ctx context.Context, key string, result any, hooks linkedTargetHooks) error {
	if b.cancelEvaluate == nil || len(b.parents[key]) == 0 {
		return b.linkedTargetState.run(ctx, key, result, hooks)
	}
	evaluate := hooks.evaluate
	hooks.evaluate = func() error {
		parents := make(chan error, 1)
		go func() {
			err := b.waitParents(ctx, key)
			if err != nil {
				b.cancelEvaluate(err)
			}
			parents <- err
		}()
		err := evaluate()
		if parentErr := <-parents; parentErr != nil {
			return parentErr
		}
		return err
	}
	unordered := *b.linkedTargetState
	unordered.parents = nil
	return unordered.run(ctx, key, result, hooks)
}

// waitParents waits until the parents of a target have been evaluated.
func (s *linkedTargetState) waitParents(ctx context.Context, key string) error {
	res, err := s.evaluated.Get(ctx, s.parents[key]...)
	if err != nil {
		return err
	}
	return wrapResultError(res, "aborted: dependency target failed")
}
