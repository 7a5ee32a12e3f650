package client

import (
	"context"

	pb "github.com/moby/buildkit/frontend/gateway/pb"
	"golang.org/x/sync/errgroup"
)

// EvaluateAll evaluates all refs of res concurrently, including those of
// attestations, and returns when all are done. The first error cancels the other
// evaluations and is returned. Nil refs are skipped.
//
// It works with any daemon. If a daemon cannot evaluate a ref, EvaluateAll stats the
// root folder of the ref instead, which has the same effect. If the daemon has
// CapGatewaySolveLoad, a client need not wait for the evaluation before another build
// uses the result.
func EvaluateAll(ctx context.Context, c Client, res *Result) error {
	evaluate := func(ctx context.Context, ref Reference) error {
		return ref.Evaluate(ctx)
	}
	caps := c.BuildOpts().Caps
	if caps.Supports(pb.CapGatewayEvaluate) != nil {
		evaluate = func(ctx context.Context, ref Reference) error {
			_, err := ref.StatFile(ctx, StatRequest{Path: "."})
			return err
		}
	}

	eg, ctx := errgroup.WithContext(ctx)
	res.EachRef(func(ref Reference) error {
		eg.Go(func() error {
			return evaluate(ctx, ref)
		})
		return nil
	})
	return eg.Wait()
}
