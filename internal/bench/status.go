package bench

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// watch measures latencies for at least statusTime, and until there are leastStatuses
// loads and latencies.
const (
	statusTime    = 4 * time.Second
	leastStatuses = 20
)

// statusLatency measures how long a build waits for the status of a step that it
// starts while the daemon loads graphs of n steps, and returns the 99th percentile.
// Upstream loads a graph only when it is evaluated, so there the graphs are evaluated;
// the evaluation fails at the step that all others depend on.
func statusLatency(n int) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		def, err := wide(ctx, n)
		if err != nil {
			return 0, err
		}
		var loads atomic.Int64
		watched := make(chan struct{})
		eg, ctx := errgroup.WithContext(ctx)
		eg.Go(func() error {
			for {
				select {
				case <-watched:
					return nil
				default:
				}
				if _, err := inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
					return load(ctx, gc, def, t.Daemon.Flavor)
				}); err != nil {
					return err
				}
				loads.Add(1)
			}
		})
		var latencies []time.Duration
		eg.Go(func() (err error) {
			defer close(watched)
			start := time.Now()
			latencies, err = watch(ctx, t.Client, func(latencies int) bool {
				return time.Since(start) > statusTime && loads.Load() >= leastStatuses && latencies >= leastStatuses
			})
			return err
		})
		if err := eg.Wait(); err != nil {
			return 0, err
		}
		slices.Sort(latencies)
		return float64(latencies[len(latencies)*99/100]), nil
	}
}

// load makes the daemon load def.
func load(ctx context.Context, gc gateway.Client, def *pb.Definition, flavor testbed.Flavor) error {
	if flavor == testbed.Graphload {
		return solve(ctx, gc, def)
	}
	if err := evaluate(ctx, gc, def); err == nil {
		return errors.New("a step that must fail has not")
	}
	return errors.WithStack(context.Cause(ctx))
}

// step is a step to start while a client watches its status.
type step struct {
	def    *pb.Definition
	digest digest.Digest
	start  time.Time
	seen   chan time.Time // receives one time
}

// watch starts one step after the other until enough returns true, and returns how
// long it waited for the status of each.
func watch(ctx context.Context, c *client.Client, enough func(int) bool) ([]time.Duration, error) {
	var (
		awaited   atomic.Pointer[step]
		latencies []time.Duration
	)
	statuses := make(chan *client.SolveStatus)
	var eg errgroup.Group
	eg.Go(func() error {
		for status := range statuses {
			for _, v := range status.Vertexes {
				if st := awaited.Load(); st != nil && v.Digest == st.digest && v.Started != nil && awaited.CompareAndSwap(st, nil) {
					st.seen <- time.Now()
				}
			}
		}
		return nil
	})
	eg.Go(func() error {
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			for !enough(len(latencies)) {
				st, err := newStep(ctx)
				if err != nil {
					return nil, err
				}
				awaited.Store(st)
				st.start = time.Now()
				if err := evaluate(ctx, gc, st.def); err != nil {
					return nil, err
				}
				select {
				case seen := <-st.seen:
					latencies = append(latencies, seen.Sub(st.start))
				case <-ctx.Done():
					return nil, errors.WithStack(context.Cause(ctx))
				}
			}
			return gateway.NewResult(), nil
		}, statuses)
		return err
	})
	err := eg.Wait()
	return latencies, err
}
