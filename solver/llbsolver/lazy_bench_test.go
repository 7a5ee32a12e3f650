package llbsolver

import (
	"fmt"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	"github.com/stretchr/testify/require"
)

func benchDefinition(b *testing.B, steps int) *pb.Definition {
	st := llb.Scratch().File(llb.Mkfile("/id", 0o600, []byte(fmt.Sprint(steps))))
	for i := range steps {
		st = st.Run(
			llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf("step %d of a chain that is benchmarked", i)}),
			llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
		).Root()
	}
	def, err := st.Marshal(b.Context(), llb.LinuxAmd64)
	require.NoError(b, err)
	return def.ToPB()
}

// BenchmarkLazySolve solves a definition that its build has not seen before.
func BenchmarkLazySolve(b *testing.B) {
	for _, steps := range []int{10, 1000} {
		b.Run(fmt.Sprintf("steps=%d", steps), func(b *testing.B) {
			bench := newBench(b)
			req := frontend.SolveRequest{Definition: benchDefinition(b, steps)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				j, br := bench.job(fmt.Sprint(i))
				_, err := br.Solve(b.Context(), req, "")
				require.NoError(b, err)
				require.NoError(b, j.Discard())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*steps), "ns/step")
		})
	}
}

// BenchmarkLazySolveAgain solves what the build owns already.
func BenchmarkLazySolveAgain(b *testing.B) {
	const steps = 1000
	bench := newBench(b)
	req := frontend.SolveRequest{Definition: benchDefinition(b, steps)}
	_, br := bench.job("job")
	b.ReportAllocs()
	for b.Loop() {
		_, err := br.Solve(b.Context(), req, "")
		require.NoError(b, err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*steps), "ns/step")
}

// BenchmarkVertexDigests reads a definition of which the build owns nothing.
func BenchmarkVertexDigests(b *testing.B) {
	const steps = 1000
	bench := newBench(b)
	req := &frontend.SolveRequest{Definition: benchDefinition(b, steps)}
	j, br := bench.job("job")
	b.ReportAllocs()
	for b.Loop() {
		dgsts, ok := br.vertexDigests(b.Context(), req, j)
		require.True(b, ok)
		require.Len(b, dgsts, steps+1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*steps), "ns/step")
}
