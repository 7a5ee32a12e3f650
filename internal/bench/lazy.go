package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// chain is a definition of exec steps that depend on each other. It makes copies with
// new digests without marshaling states again: for a deep chain, that would take the
// client far longer than the daemon needs to load it.
type chain struct {
	ops      []*pb.Op // inputs first, the terminal is last
	digests  []string
	metadata map[string]*pb.OpMetadata
}

// newChain makes a chain of n steps. They need secrets, like the steps that users
// load lazily.
func newChain(ctx context.Context, n int) (*chain, error) {
	st := llb.Scratch().File(llb.Mkfile("/id", 0o600, []byte(identity.NewID())))
	for i := range n {
		st = st.Run(
			llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf("step %d of a chain of %d", i, n)}),
			llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
		).Root()
	}
	def, err := marshal(ctx, st)
	if err != nil {
		return nil, err
	}
	c := &chain{metadata: def.Metadata}
	for _, dt := range def.Def {
		var op pb.Op
		if err := op.Unmarshal(dt); err != nil {
			return nil, errors.WithStack(err)
		}
		c.ops = append(c.ops, &op)
		c.digests = append(c.digests, digest.FromBytes(dt).String())
	}
	return c, nil
}

// fresh returns definitions of the first steps of a chain with new digests, one for
// each number of steps.
func (c *chain) fresh(steps ...int) ([]*pb.Definition, error) {
	names := map[string]string{}
	var ops [][]byte
	last := len(c.ops) - 1
	for i, op := range c.ops[:last] {
		op := op.CloneVT()
		if f := op.GetFile(); f != nil {
			f.Actions[0].GetMkfile().Data = []byte(identity.NewID())
		}
		dt, err := c.rename(op, names)
		if err != nil {
			return nil, err
		}
		ops = append(ops, dt)
		names[c.digests[i]] = digest.FromBytes(dt).String()
	}
	var defs []*pb.Definition
	for _, n := range steps {
		// the first op is not a step
		terminal := &pb.Op{Inputs: []*pb.Input{{Digest: c.digests[n]}}}
		dt, err := c.rename(terminal, names)
		if err != nil {
			return nil, err
		}
		def := &pb.Definition{Def: append(slices.Clone(ops[:n+1]), dt), Metadata: map[string]*pb.OpMetadata{}}
		for _, old := range c.digests[:n+1] {
			def.Metadata[names[old]] = c.metadata[old]
		}
		def.Metadata[digest.FromBytes(dt).String()] = c.metadata[c.digests[last]]
		defs = append(defs, def)
	}
	return defs, nil
}

// rename marshals op with the new digests of its inputs.
func (c *chain) rename(op *pb.Op, names map[string]string) ([]byte, error) {
	for _, in := range op.Inputs {
		in.Digest = names[in.Digest]
	}
	dt, err := op.Marshal()
	return dt, errors.WithStack(err)
}

// chains has the chains by length. Each is made on first use.
var chains sync.Map

// chainOf returns the definition of n steps with new digests.
func chainOf(ctx context.Context, n int) (*pb.Definition, error) {
	defs, err := chainsOf(ctx, n, n)
	if err != nil {
		return nil, err
	}
	return defs[0], nil
}

func chainsOf(ctx context.Context, n int, steps ...int) ([]*pb.Definition, error) {
	c, ok := chains.Load(n)
	if !ok {
		made, err := newChain(ctx, n)
		if err != nil {
			return nil, err
		}
		c, _ = chains.LoadOrStore(n, made)
	}
	return c.(*chain).fresh(steps...)
}

// wide returns the definition of n exec steps in chains of 100, so that an error
// passes few steps.
func wide(ctx context.Context, n int) (*pb.Definition, error) {
	const deep = 100
	id := identity.NewID()
	root := llb.Scratch().File(llb.Rm("/" + id))
	var chains []llb.State
	for i := range n / deep {
		st := root
		for j := range deep {
			st = st.Run(llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf("step %d of %d of %s", j, i, id)})).Root()
		}
		chains = append(chains, st)
	}
	return marshal(ctx, llb.Merge(chains))
}

// newStep returns a step with a new digest.
func newStep(ctx context.Context) (*step, error) {
	def, err := marshal(ctx, llb.Scratch().File(llb.Mkfile("/id", 0o600, []byte(identity.NewID()))))
	if err != nil {
		return nil, err
	}
	return &step{def: def, digest: digest.FromBytes(def.Def[0]), seen: make(chan time.Time, 1)}, nil
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

func growing(solves, steps int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		sizes := make([]int, solves)
		for i := range sizes {
			sizes[i] = (i + 1) * steps
		}
		defs, err := chainsOf(ctx, solves*steps, sizes...)
		if err != nil {
			return 0, err
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
		def, err := chainOf(ctx, steps)
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

// emptyBuilds measures builds that do nothing while other builds hold their results.
func emptyBuilds(n, holders, steps int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		release := make(chan struct{})
		held := make(chan struct{}, holders)
		eg, ctx := errgroup.WithContext(ctx)
		for range holders {
			eg.Go(func() error {
				def, err := chainOf(ctx, steps)
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
