package solver

import (
	"fmt"
	"testing"

	"github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

const benchSteps = 5000

// benchChain returns a chain of vertices, and its digests with inputs first.
func benchChain(n int) (Edge, []digest.Digest) {
	var e Edge
	var dgsts []digest.Digest
	for i := range n {
		opt := vtxOpt{name: fmt.Sprintf("v%d", i)}
		if i > 0 {
			opt.inputs = []Edge{e}
		}
		e = Edge{Vertex: vtx(opt)}
		dgsts = append(dgsts, e.Vertex.Digest())
	}
	return e, dgsts
}

func reportPerStep(b *testing.B) {
	b.ReportAllocs()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchSteps), "ns/step")
}

// BenchmarkRegister registers loaded vertices that have no owner.
func BenchmarkRegister(b *testing.B) {
	s := newTestSolver(b)
	e, _ := benchChain(benchSteps)
	for i := 0; b.Loop(); i++ {
		j := newTestJob(b, s, fmt.Sprint(i))
		require.NoError(b, j.Register(b.Context(), e))
		b.StopTimer()
		require.NoError(b, j.Discard())
		b.StartTimer()
	}
	reportPerStep(b)
}

// BenchmarkRegisterDigests registers vertices that are known by digest.
func BenchmarkRegisterDigests(b *testing.B) {
	s := newTestSolver(b)
	_, dgsts := benchChain(benchSteps)
	for i := 0; b.Loop(); i++ {
		j := newTestJob(b, s, fmt.Sprint(i))
		require.NoError(b, j.RegisterDigests(b.Context(), dgsts, nil))
		b.StopTimer()
		require.NoError(b, j.Discard())
		b.StartTimer()
	}
	reportPerStep(b)
}

// BenchmarkRegisterAgain registers what the job owns.
func BenchmarkRegisterAgain(b *testing.B) {
	s := newTestSolver(b)
	e, _ := benchChain(benchSteps)
	j := newTestJob(b, s, "job")
	require.NoError(b, j.Register(b.Context(), e))
	for b.Loop() {
		require.NoError(b, j.Register(b.Context(), e))
	}
	reportPerStep(b)
}

// BenchmarkDiscard ends a job that only registered.
func BenchmarkDiscard(b *testing.B) {
	s := newTestSolver(b)
	_, dgsts := benchChain(benchSteps)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		j := newTestJob(b, s, fmt.Sprint(i))
		require.NoError(b, j.RegisterDigests(b.Context(), dgsts, nil))
		b.StartTimer()
		require.NoError(b, j.Discard())
	}
	reportPerStep(b)
}

// ownedState returns the state of a vertex with owners of as many sessions, or
// of one, below a line of parents.
func ownedState(t testing.TB, owners, parents int, oneSession bool) *state {
	s := newTestSolver(t)
	v := vtx(vtxOpt{name: "v"})
	builder := newTestJob(t, s, "builder")
	var parent Vertex
	for i := range parents {
		p := vtx(vtxOpt{name: fmt.Sprintf("parent%d", i)})
		loaded, err := s.load(t.Context(), p, parent, builder)
		require.NoError(t, err)
		parent = loaded
	}
	loaded, err := s.load(t.Context(), v, parent, builder)
	require.NoError(t, err)
	for i := range owners {
		j := newTestJob(t, s, fmt.Sprintf("owner%d", i))
		if oneSession {
			j.SessionID = "session"
		}
		require.NoError(t, j.Register(t.Context(), Edge{Vertex: v}))
	}
	return s.getState(Edge{Vertex: loaded})
}

// BenchmarkSessionOrder asks for all sessions of a vertex.
func BenchmarkSessionOrder(b *testing.B) {
	for _, owners := range []int{1, 10, 1000} {
		for _, parents := range []int{0, 20} {
			b.Run(fmt.Sprintf("owners=%d/parents=%d", owners, parents), func(b *testing.B) {
				st := ownedState(b, owners, parents, false)
				b.ReportAllocs()
				for b.Loop() {
					require.Len(b, session.AllSessionIDs(st.Session()), owners+1)
				}
			})
		}
	}
}

// TestSessionOrderSkipsDuplicates asks for the sessions of a vertex that one
// session owns many times: those that are skipped must not cost memory.
func TestSessionOrderSkipsDuplicates(t *testing.T) {
	allocs := func(owners int) float64 {
		st := ownedState(t, owners, 3, true)
		return testing.AllocsPerRun(100, func() {
			require.Equal(t, []string{"session", "builder"}, session.AllSessionIDs(st.Session()))
		})
	}
	require.InDelta(t, allocs(1), allocs(1000), 0.5)
}

// TestOwnerIndexShrinks ends builds of many vertices: the index must not hold
// on to the memory of its largest size.
func TestOwnerIndexShrinks(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	_, dgsts := benchChain(benchSteps)
	jobs := make([]*Job, 10)
	for i := range jobs {
		jobs[i] = newTestJob(t, s, fmt.Sprint(i))
		part := dgsts[i*benchSteps/len(jobs) : (i+1)*benchSteps/len(jobs)]
		require.NoError(t, jobs[i].RegisterDigests(t.Context(), part, nil))
	}
	for i, j := range jobs[:9] {
		require.NoError(t, j.Discard())
		left := benchSteps - (i+1)*benchSteps/len(jobs)
		require.Len(t, s.owners.owners, left)
		require.LessOrEqual(t, s.owners.room, 4*left)
	}
	for _, dgst := range dgsts[benchSteps*9/10:] {
		require.Len(t, s.owners.lookup(dgst), 1)
	}
	require.NoError(t, jobs[9].Discard())
	require.Nil(t, s.owners.owners)
	requireEmpty(t, s)
}
