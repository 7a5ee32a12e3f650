// Package bench measures what lazy solves cost, through the client's API as
// users meet it.
package bench

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// Row is one kind of work.
type Row struct {
	Name string
	Bar  float64 // how many times the cost of upstream is acceptable
	Run  func(context.Context, *client.Client) (time.Duration, error)
}

var notWord = regexp.MustCompile(`[^A-Za-z0-9]+`)

// ID is the name without spaces.
func (r Row) ID() string {
	return notWord.ReplaceAllString(r.Name, "_")
}

// Rows are the works that are measured.
var Rows = rows()

// Find returns the rows whose name has one of the parts, all of them for none.
func Find(parts []string) ([]Row, error) {
	if len(parts) == 0 {
		return Rows, nil
	}
	var out []Row
	for _, row := range Rows {
		for _, part := range parts {
			if strings.Contains(row.Name, part) {
				out = append(out, row)
				break
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Errorf("no row has %q in its name", parts)
	}
	return out, nil
}

func rows() (out []Row) {
	for _, n := range []int{10, 100, 1000, 5000} {
		out = append(out, Row{Name: fmt.Sprintf("lazy solve of %d exec steps", n), Bar: 1.25, Run: lazySolve(n)})
	}
	return append(out,
		Row{Name: "100 lazy solves growing to 500 steps", Bar: 1.2, Run: growing(100, 5)},
		Row{Name: "1000 steps solved 50 times", Bar: 1.1, Run: repeated(1000, 50)},
		Row{Name: "whole build around a lazy solve of 2000 steps", Bar: 1.2, Run: wholeBuild(2000)},
		Row{Name: "solve and evaluate 150 file ops", Bar: 1.0, Run: evaluateFileOps(150)},
		Row{Name: "30 empty builds while 20 builds hold 1000 steps each", Bar: 1.15, Run: emptyBuilds(30, 20, 1000)},
	)
}

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

func lazySolve(n int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
		def, _, err := chain(ctx, n)
		if err != nil {
			return 0, err
		}
		return inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
			return solve(ctx, gc, def)
		})
	}
}

func growing(solves, steps int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
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
		return inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
			for _, def := range defs {
				if err := solve(ctx, gc, def); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func repeated(steps, times int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
		def, _, err := chain(ctx, steps)
		if err != nil {
			return 0, err
		}
		return inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
			for range times {
				if err := solve(ctx, gc, def); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func wholeBuild(steps int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
		def, _, err := chain(ctx, steps)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		_, err = inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
			return solve(ctx, gc, def)
		})
		return time.Since(start), err
	}
}

func evaluateFileOps(n int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
		st := llb.Scratch()
		id := identity.NewID()
		for i := range n {
			st = st.File(llb.Mkfile(fmt.Sprintf("/file%d", i), 0o600, []byte(id)))
		}
		def, err := marshal(ctx, st)
		if err != nil {
			return 0, err
		}
		return inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
			res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def})
			if err != nil {
				return err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return err
			}
			return ref.Evaluate(ctx)
		})
	}
}

// emptyBuilds measures builds that do nothing while others hold what they have
// solved.
func emptyBuilds(n, holders, steps int) func(context.Context, *client.Client) (time.Duration, error) {
	return func(ctx context.Context, c *client.Client) (time.Duration, error) {
		release := make(chan struct{})
		held := make(chan struct{}, holders)
		eg, ctx := errgroup.WithContext(ctx)
		for range holders {
			eg.Go(func() error {
				def, _, err := chain(ctx, steps)
				if err != nil {
					return err
				}
				_, err = inBuild(ctx, c, func(ctx context.Context, gc gateway.Client) error {
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
				if _, err := inBuild(ctx, c, func(context.Context, gateway.Client) error { return nil }); err != nil {
					return err
				}
			}
			d = time.Since(start)
			return nil
		})
		return d, eg.Wait()
	}
}
