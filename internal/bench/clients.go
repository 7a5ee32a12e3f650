package bench

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/pkg/errors"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// CapSolveLoad is the capability of a daemon that loads lazy solves.
const CapSolveLoad apicaps.CapID = "gateway.solve.load"

// Graph is a set of targets that are chained on each other. Each target is a build with
// its own session. It does one second of work that needs its secret and not the results
// of the others, and then copies the results of the targets that it is chained on.
type Graph struct {
	Name    string
	Targets [][]int // for each target, the earlier targets that it is chained on
}

// Graphs are the graphs of the comparison.
var Graphs = []Graph{
	{Name: "chain of five", Targets: [][]int{nil, {0}, {1}, {2}, {3}}},
	{Name: "diamond of six", Targets: [][]int{nil, {0}, {0}, {0}, {0}, {1, 2, 3, 4}}},
}

// CompareClients compares a client that orders evaluations itself with one that relies
// on the daemon.
func CompareClients(ctx context.Context, w io.Writer, rounds int) (retErr error) {
	t, err := NewTarget(ctx, testbed.Graphload)
	if err != nil {
		return err
	}
	defer testbed.CloseLast(t, &retErr)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TARGETS\tORDERED CLIENT\tRELYING CLIENT\tTIMES AS FAST")
	for _, g := range Graphs {
		var times [2][]time.Duration
		for range rounds {
			for i, ordered := range []bool{true, false} {
				took, err := g.Client(ctx, t.Client, ordered)
				if err != nil {
					return errors.Wrap(err, g.Name)
				}
				times[i] = append(times[i], took)
			}
		}
		ordered, relying := Median(times[0]), Median(times[1])
		progress.Printf("%s: %s and %s", g.Name, ordered.Round(time.Millisecond), relying.Round(time.Millisecond))
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f\n", g.Name, ordered.Round(10*time.Millisecond), relying.Round(10*time.Millisecond), float64(ordered)/float64(relying))
	}
	return errors.WithStack(tw.Flush())
}

// Client evaluates the targets of a graph and returns how long that took. An ordered
// client evaluates a target when the targets that it is chained on are done, which
// clients must do if the daemon does not load lazy solves. Otherwise, the client
// evaluates each target as soon as it is solved.
func (g Graph) Client(ctx context.Context, c *client.Client, ordered bool) (time.Duration, error) {
	return withRootfs(func(_ string, _, rootfs fsutil.FS) (time.Duration, error) {
		return g.client(ctx, c, rootfs, ordered)
	})
}

func (g Graph) client(ctx context.Context, c *client.Client, rootfs fsutil.FS, ordered bool) (time.Duration, error) {
	n := len(g.Targets)
	states := make([]llb.State, n)
	solved, done := make([]chan struct{}, n), make([]chan struct{}, n)
	for i := range n {
		solved[i], done[i] = make(chan struct{}), make(chan struct{})
	}

	start := time.Now()
	eg, ctx := errgroup.WithContext(ctx)
	for i, deps := range g.Targets {
		eg.Go(func() error {
			secret := identity.NewID()
			_, err := c.Build(ctx, client.SolveOpt{
				LocalMounts: map[string]fsutil.FS{"rootfs": rootfs},
				Session:     []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte(secret)})},
			}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
				if caps := gc.BuildOpts().Caps; !ordered && !caps.Contains(CapSolveLoad) {
					return nil, errors.Errorf("the daemon has no %s", CapSolveLoad)
				}
				for _, dep := range deps {
					if err := wait(ctx, solved[dep]); err != nil {
						return nil, err
					}
				}
				states[i] = target(i, secret, deps, states)
				def, err := states[i].Marshal(ctx, llb.LocalUniqueID("clients"))
				if err != nil {
					return nil, err
				}
				res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
				if err != nil {
					return nil, err
				}
				close(solved[i])
				if ordered {
					for _, dep := range deps {
						if err := wait(ctx, done[dep]); err != nil {
							return nil, err
						}
					}
				}
				ref, err := res.SingleRef()
				if err != nil {
					return nil, err
				}
				if err := ref.Evaluate(ctx); err != nil {
					return nil, errors.Wrapf(err, "target %d", i)
				}
				close(done[i])
				for _, ch := range done {
					if err := wait(ctx, ch); err != nil {
						return nil, err
					}
				}
				return gateway.NewResult(), nil
			}, nil)
			return err
		})
	}
	err := eg.Wait()
	return time.Since(start), err
}

func wait(ctx context.Context, ch chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// target returns the state of a target: a step of one second that passes only with the
// secret of this target, and the copied results of others.
func target(i int, secret string, deps []int, states []llb.State) llb.State {
	root := llb.Local("rootfs", llb.SharedKeyHint("clients"))
	st := llb.Scratch().File(llb.Copy(root, "/", "/")).Run(
		llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf(`test "$(cat /run/secrets/token)" = %s && sleep 1 && echo %d > /target%d`, secret, i, i)}),
		llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
	).Root()
	for _, dep := range deps {
		name := fmt.Sprintf("/target%d", dep)
		st = st.File(llb.Copy(states[dep], name, name))
	}
	return st
}
