package bench

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNanoseconds(t *testing.T) {
	ns, err := nanoseconds("BenchmarkA", []byte("goos: linux\nBenchmarkA/states=10-2   \t 100\t  2500 ns/op\nPASS\n"))
	require.NoError(t, err)
	require.InDelta(t, 2500, ns, 0)

	_, err = nanoseconds("BenchmarkB", []byte("goos: linux\nPASS\n"))
	require.ErrorContains(t, err, "BenchmarkB: expected one benchmark, not 0")
	_, err = nanoseconds("BenchmarkC", []byte("BenchmarkC-2 1 5 ns/op\nBenchmarkD-2 1 5 ns/op\n"))
	require.ErrorContains(t, err, "not 2")
}

func TestPattern(t *testing.T) {
	require.Equal(t, "^BenchmarkA$/^states=10$", pattern("BenchmarkA/states=10"))
}
