package solver

import (
	"context"
	"fmt"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// These benchmarks use nothing of the change. They also run in a tree without it, to
// compare the two.

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

// BenchmarkDiscardBeside builds a step and discards the job, while another job has
// many states.
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

// slowImport is a cache import that takes longer than anything else here.
type slowImport struct {
	CacheManager
	started chan struct{}
	stop    chan struct{}
}

func (si *slowImport) ID() string { return "slow import" }

func (si *slowImport) Query([]CacheKeyWithSelector, Index, digest.Digest, Index) ([]*CacheKey, error) {
	select {
	case si.started <- struct{}{}:
	default:
	}
	select {
	case <-si.stop:
	case <-time.After(time.Second):
	}
	return nil, nil
}

// BenchmarkDiscardDuringImport ends a job that has loaded a step while another
// one waits for a cache import.
func BenchmarkDiscardDuringImport(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s := NewSolver(SolverOpt{ResolveOpFunc: testOpResolver})
		si := &slowImport{CacheManager: NewInMemoryCacheManager(), started: make(chan struct{}, 1), stop: make(chan struct{})}
		importer, err := s.NewJob("importer")
		require.NoError(b, err)
		done := make(chan error, 1)
		go func() {
			res, err := importer.Build(b.Context(), Edge{Vertex: vtx(vtxOpt{name: "v", cacheSource: si})})
			if err == nil {
				err = res.Release(b.Context())
			}
			done <- err
		}()
		<-si.started
		j, err := s.NewJob("other")
		require.NoError(b, err)
		_, err = s.load(b.Context(), vtx(vtxOpt{name: "other"}), nil, j)
		require.NoError(b, err)
		b.StartTimer()

		require.NoError(b, j.Discard())

		b.StopTimer()
		close(si.stop)
		require.NoError(b, <-done)
		require.NoError(b, importer.Discard())
		s.Close()
		b.StartTimer()
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
