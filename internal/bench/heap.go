package bench

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// heaps returns the heap of the daemon before a build, while it holds solves of
// so many steps each, and after it.
func heaps(ctx context.Context, t *Target, solves, steps int) (before, held, after float64, err error) {
	measure := func(heap *float64) {
		if err == nil {
			*heap, err = t.Daemon.Heap(ctx)
		}
	}
	measure(&before)
	if err != nil {
		return 0, 0, 0, err
	}
	_, err = inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
		for range solves {
			def, _, err := chain(ctx, steps)
			if err != nil {
				return err
			}
			if err := solve(ctx, gc, def); err != nil {
				return err
			}
		}
		measure(&held)
		return err
	})
	measure(&after)
	return before, held, after, err
}

// heapHeld measures the heap that a build holds for each step that it has
// solved lazily.
func heapHeld(solves, steps int) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		before, held, _, err := heaps(ctx, t, solves, steps)
		return (held - before) / float64(solves*steps), err
	}
}

// heapLeft measures the heap after a build in terms of the one before it.
func heapLeft(solves, steps int) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		before, _, after, err := heaps(ctx, t, solves, steps)
		return after / before, err
	}
}
