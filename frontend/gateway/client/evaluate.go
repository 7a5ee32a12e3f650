package client

import (
	"context"

	pb "github.com/moby/buildkit/frontend/gateway/pb"
	"golang.org/x/sync/errgroup"
)

// EvaluateAll evaluates all refs of res concurrently, those of attestations
// included, and returns when all are done. The first error cancels the others
// and is returned. Nil refs are skipped.
//
// It works with any daemon. One that cannot evaluate a ref is asked for the
// state of its root folder instead, which has the same effect. To wait for an
// evaluation is not needed for a result to be used by another build when the
// daemon has CapGatewaySolveLoad.
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
