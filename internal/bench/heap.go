package bench

import (
	"context"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/pkg/errors"
)

// heaps returns the heap of the daemon before a build, while the build holds the given
// number of solves with steps steps each, and after it.
func heaps(ctx context.Context, t *Target, solves, steps int) (before, held, after float64, err error) {
	if before, err = idleHeap(ctx, t); err != nil {
		return 0, 0, 0, err
	}
	_, err = inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
		for range solves {
			def, err := wide(ctx, steps)
			if err != nil {
				return err
			}
			if err := solve(ctx, gc, def); err != nil {
				return err
			}
		}
		held, err = t.Daemon.Heap(ctx)
		return err
	})
	if err != nil {
		return 0, 0, 0, err
	}
	after, err = idleHeap(ctx, t)
	return before, held, after, err
}

// idleHeap measures the heap several times and returns the smallest value, because the
// daemon may still release a build after its client has returned.
func idleHeap(ctx context.Context, t *Target) (least float64, _ error) {
	for range 10 {
		heap, err := t.Daemon.Heap(ctx)
		if err != nil {
			return 0, err
		}
		if least == 0 || heap < least {
			least = heap
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return 0, errors.WithStack(context.Cause(ctx))
		}
	}
	return least, nil
}

// heapHeld measures the heap that a build holds for each lazily solved step.
func heapHeld(solves, steps int) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		before, held, _, err := heaps(ctx, t, solves, steps)
		return (held - before) / float64(solves*steps), err
	}
}

// heapLeft measures the ratio of the heap after a build to the heap before it.
func heapLeft(solves, steps int) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		before, _, after, err := heaps(ctx, t, solves, steps)
		return after / before, err
	}
}
