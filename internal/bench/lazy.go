package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// chain returns the definition of n exec steps, none of which has been seen
// before. They need secrets, as the steps do that all of this is about.
func chain(ctx context.Context, n int) (*pb.Definition, []llb.State, error) {
	id := identity.NewID()
	st := llb.Scratch().File(llb.Mkfile("/id", 0o600, []byte(id)))
	states := make([]llb.State, n)
	for i := range n {
		st = st.Run(
			llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf("step %d of %s", i, id)}),
			llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
		).Root()
		states[i] = st
	}
	def, err := marshal(ctx, st)
	return def, states, err
}

func marshal(ctx context.Context, st llb.State) (*pb.Definition, error) {
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return def.ToPB(), nil
}

// inBuild runs f in a build and returns the time of f.
func inBuild(ctx context.Context, c *client.Client, f func(context.Context, gateway.Client) error) (d time.Duration, err error) {
	_, err = c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		start := time.Now()
		if err := f(ctx, gc); err != nil {
			return nil, err
		}
		d = time.Since(start)
		return gateway.NewResult(), nil
	}, nil)
	return d, err
}

func solve(ctx context.Context, gc gateway.Client, def *pb.Definition) error {
	_, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def})
	return err
}

func lazySolve(n int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		def, _, err := chain(ctx, n)
		if err != nil {
			return 0, err
		}
		return inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
			return solve(ctx, gc, def)
		})
	})
}

func growing(solves, steps int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		_, states, err := chain(ctx, solves*steps)
		if err != nil {
			return 0, err
		}
		defs := make([]*pb.Definition, solves)
		for i := range defs {
			if defs[i], err = marshal(ctx, states[(i+1)*steps-1]); err != nil {
				return 0, err
			}
		}
		return inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
			for _, def := range defs {
				if err := solve(ctx, gc, def); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func repeated(steps, times int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		def, _, err := chain(ctx, steps)
		if err != nil {
			return 0, err
		}
		return inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
			for range times {
				if err := solve(ctx, gc, def); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func wholeBuild(steps int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		def, _, err := chain(ctx, steps)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		_, err = inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
			return solve(ctx, gc, def)
		})
		return time.Since(start), err
	})
}

// emptyBuilds measures builds that do nothing while others hold what they have
// solved.
func emptyBuilds(n, holders, steps int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		release := make(chan struct{})
		held := make(chan struct{}, holders)
		eg, ctx := errgroup.WithContext(ctx)
		for range holders {
			eg.Go(func() error {
				def, _, err := chain(ctx, steps)
				if err != nil {
					return err
				}
				_, err = inBuild(ctx, t.Client, func(ctx context.Context, gc gateway.Client) error {
					if err := solve(ctx, gc, def); err != nil {
						return err
					}
					held <- struct{}{}
					select {
					case <-release:
					case <-ctx.Done():
					}
					return nil
				})
				return err
			})
		}
		var d time.Duration
		eg.Go(func() error {
			defer close(release)
			for range holders {
				select {
				case <-held:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			start := time.Now()
			for range n {
				if _, err := inBuild(ctx, t.Client, func(context.Context, gateway.Client) error { return nil }); err != nil {
					return err
				}
			}
			d = time.Since(start)
			return nil
		})
		err := eg.Wait()
		return d, err
	})
}
