package solver

import (
	"context"
	"fmt"
	"testing"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// These benchmarks use nothing of the change, so they can be run in a tree
// without it as well, to compare the two.

// besideStates loads n states for another job.
func besideStates(b *testing.B, n int) *Solver {
	s := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver})
	b.Cleanup(s.Close)
	other, err := s.NewJob("other")
	require.NoError(b, err)
	for i := range n {
		_, err := s.load(b.Context(), vtx(vtxOpt{name: fmt.Sprintf("other%d", i)}), nil, other)
		require.NoError(b, err)
	}
	return s
}

// BenchmarkDiscardBeside builds a step and discards the job, beside states of
// another job.
func BenchmarkDiscardBeside(b *testing.B) {
	for _, failing := range []bool{false, true} {
		for _, n := range []int{0, 10_000, 50_000} {
			b.Run(fmt.Sprintf("failing=%t/states=%d", failing, n), func(b *testing.B) {
				s := besideStates(b, n)
				opt := vtxOpt{name: "v", ignoreCache: true}
				if failing {
					opt.execPreFunc = func(context.Context) error { return errors.New("failed") }
				}
				v := vtx(opt)
				for i := 0; b.Loop(); i++ {
					j, err := s.NewJob(fmt.Sprint(i))
					require.NoError(b, err)
					res, err := j.Build(b.Context(), Edge{Vertex: v})
					require.Equal(b, failing, err != nil)
					if err == nil {
						require.NoError(b, res.Release(b.Context()))
					}
					require.NoError(b, j.Discard())
				}
			})
		}
	}
}

// BenchmarkMergeChain merges a chain of steps into another one and discards the
// job.
func BenchmarkMergeChain(b *testing.B) {
	const n = 1600
	for i := 0; b.Loop(); i++ {
		s := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver})
		j, err := s.NewJob(fmt.Sprint(i))
		require.NoError(b, err)
		var chains [2][]Edge
		for c := range chains {
			for k := range n {
				opt := vtxOpt{name: fmt.Sprintf("%d-%d", c, k)}
				if k > 0 {
					opt.inputs = []Edge{chains[c][k-1]}
				}
				chains[c] = append(chains[c], Edge{Vertex: vtx(opt)})
			}
			_, err := s.load(b.Context(), chains[c][n-1].Vertex, nil, j)
			require.NoError(b, err)
		}
		for k := range n {
			s.setEdge(chains[0][k], s.getEdge(chains[1][k]))
		}
		require.NoError(b, j.Discard())
		s.Close()
	}
}
