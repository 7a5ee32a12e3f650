package client

import (
	"context"
	"fmt"
	"sync"
	"testing"

	pb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// evaluateClient is a client of a daemon with the given capabilities.
type evaluateClient struct {
	Client
	caps []apicaps.CapID
}

func (c *evaluateClient) BuildOpts() BuildOpts {
	var caps []*apicaps.PBCap
	for _, id := range c.caps {
		caps = append(caps, &apicaps.PBCap{ID: string(id), Enabled: true})
	}
	return BuildOpts{Caps: pb.Caps.CapSet(caps)}
}

// evaluateRef is a ref that records how it was evaluated.
type evaluateRef struct {
	Reference
	mu        *sync.Mutex
	calls     *[]string
	evaluated func(context.Context) error
}

func (r *evaluateRef) call(ctx context.Context, method string) error {
	r.mu.Lock()
	*r.calls = append(*r.calls, method)
	r.mu.Unlock()
	return r.evaluated(ctx)
}

func (r *evaluateRef) Evaluate(ctx context.Context) error {
	return r.call(ctx, "Evaluate")
}

func (r *evaluateRef) StatFile(ctx context.Context, req StatRequest) (*fstypes.Stat, error) {
	return nil, r.call(ctx, "StatFile "+req.Path)
}

func TestEvaluateAll(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		caps []apicaps.CapID
		want string
	}{
		{name: "daemon with Evaluate", caps: []apicaps.CapID{pb.CapGatewayEvaluate}, want: "Evaluate"},
		{name: "daemon without", want: "StatFile ."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			const n = 4
			var mu sync.Mutex
			var calls []string
			var wg sync.WaitGroup
			wg.Add(n)
			ref := func() Reference {
				return &evaluateRef{mu: &mu, calls: &calls, evaluated: func(context.Context) error {
					wg.Done()
					wg.Wait() // all of them run at the same time
					return nil
				}}
			}
			res := NewResult()
			res.SetRef(ref())
			res.AddRef("a", ref())
			res.AddRef("b", ref())
			res.AddRef("none", nil)
			res.AddAttestation("a", Attestation{Ref: ref()})
			res.AddAttestation("a", Attestation{})
			require.NoError(t, EvaluateAll(t.Context(), &evaluateClient{caps: tc.caps}, res))
			require.Equal(t, []string{tc.want, tc.want, tc.want, tc.want}, calls)
		})
	}
}

func TestEvaluateAllError(t *testing.T) {
	t.Parallel()
	c := &evaluateClient{caps: []apicaps.CapID{pb.CapGatewayEvaluate}}
	for range 1000 {
		var mu sync.Mutex
		var calls []string
		res := NewResult()
		for i := range 3 {
			res.AddRef(fmt.Sprint(i), &evaluateRef{mu: &mu, calls: &calls, evaluated: func(ctx context.Context) error {
				if i == 1 {
					return errors.New("first")
				}
				<-ctx.Done()
				return errors.New("canceled by the first")
			}})
		}
		require.EqualError(t, EvaluateAll(t.Context(), c, res), "first")
	}
	require.NoError(t, EvaluateAll(t.Context(), c, NewResult()))
}

// Evaluate the platforms of a result at the same time and stop at the first
// error.
func ExampleEvaluateAll() {
	build := func(ctx context.Context, c Client) (*Result, error) {
		res, err := c.Solve(ctx, SolveRequest{
			Frontend:    "dockerfile.v0",
			FrontendOpt: map[string]string{"platform": "linux/amd64,linux/arm64"},
		})
		if err != nil {
			return nil, err
		}
		return res, EvaluateAll(ctx, c, res)
	}
	_ = build // passed to Build of the client package
}

// A client that chains results orders their evaluation only if the daemon does
// not load lazy solves.
func ExampleClient_solveLoad() {
	build := func(ctx context.Context, c Client) (*Result, error) {
		res, err := c.Solve(ctx, SolveRequest{Frontend: "dockerfile.v0"})
		if err != nil {
			return nil, err
		}
		caps := c.BuildOpts().Caps
		if caps.Supports(pb.CapGatewaySolveLoad) != nil {
			// The builds that chain on this one may only start when its steps
			// have run with its session.
			if err := EvaluateAll(ctx, c, res); err != nil {
				return nil, err
			}
		}
		return res, nil
	}
	_ = build // passed to Build of the client package
}
