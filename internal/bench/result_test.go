package bench

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

// result returns n samples of each daemon. Ours are ratio times as high as upstream's.
func result(row Row, n int, ratio float64) *Result {
	r := &Result{Row: row, Samples: map[testbed.Flavor][]float64{}}
	for i := range n {
		v := 1e6 * float64(100+4*(i%5))
		r.Samples[testbed.Upstream] = append(r.Samples[testbed.Upstream], v)
		r.Samples[testbed.Graphload] = append(r.Samples[testbed.Graphload], v*ratio)
	}
	return r
}

func TestResultMissed(t *testing.T) {
	for name, tc := range map[string]struct {
		row    Row
		ratio  float64
		missed bool
	}{
		"below":             {Row{Bar: 1.25}, 1.2, false},
		"above":             {Row{Bar: 1.25}, 1.26, true},
		"above in noise":    {Row{Bar: 1, Noisy: true}, 1.01, false},
		"above noise":       {Row{Bar: 1, Noisy: true}, 1.1, true},
		"below maximum":     {Row{Max: 120e6}, 1, false},
		"above maximum":     {Row{Max: 90e6}, 1, true},
		"no bar":            {Row{}, 10, false},
		"maximum and ratio": {Row{Max: 1e12, Bar: 1}, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := result(tc.row, 20, tc.ratio)
			require.InDelta(t, tc.ratio, r.Ratio(), 1e-9)
			lo, hi := r.Interval()
			require.LessOrEqual(t, lo, tc.ratio)
			require.GreaterOrEqual(t, hi, tc.ratio)
			require.Equal(t, tc.missed, r.Missed())
		})
	}
}

func TestMeasureTakesTurns(t *testing.T) {
	targets := map[testbed.Flavor]*Target{}
	names := map[*Target]testbed.Flavor{}
	for _, flavor := range testbed.Flavors {
		targets[flavor] = &Target{}
		names[targets[flavor]] = flavor
	}
	var order []testbed.Flavor
	row := Row{Name: "row", Rounds: 3, Run: func(_ context.Context, target *Target) (float64, error) {
		order = append(order, names[target])
		return float64(len(order)), nil
	}}
	r, err := Measure(t.Context(), row, targets, 10)
	require.NoError(t, err)
	require.Equal(t, []testbed.Flavor{"upstream", "graphload", "graphload", "upstream", "upstream", "graphload", "graphload", "upstream"}, order)
	require.Equal(t, []float64{4, 5, 8}, r.Samples[testbed.Upstream], "the first turn does not count")
	require.Equal(t, []float64{3, 6, 7}, r.Samples[testbed.Graphload])

	row.Run = func(context.Context, *Target) (float64, error) { return 0, errors.New("no daemon") }
	_, err = Measure(t.Context(), row, targets, 10)
	require.EqualError(t, err, "row on the upstream daemon: no daemon")
}

func TestWriteResults(t *testing.T) {
	results := []*Result{
		result(Row{Name: "ten steps", Unit: Time, Bar: 1.25}, 2, 1),
		result(Row{Name: "more", Unit: Time, Bar: 1.25}, 2, 2),
		result(Row{Name: "heap", Unit: Bytes, Max: 1}, 2, 1),
	}
	var buf bytes.Buffer
	require.NoError(t, WriteTable(&buf, results))
	require.Regexp(t, `(?m)^ten steps +2 +104ms +104ms +1.00 +0.96-1.04 +1.25 +$`, buf.String())
	require.Regexp(t, `(?m)^more .* missed$`, buf.String())

	buf.Reset()
	require.NoError(t, WriteMarkdown(&buf, results))
	require.Contains(t, buf.String(), "| heap | 2 | 104000000 B | 104000000 B | 1.00 | 0.96-1.04 | at most 1 B | missed |\n")

	buf.Reset()
	require.NoError(t, WriteBenchstat(&buf, results[:1]))
	require.Equal(t, "Benchmarkten_steps/daemon=upstream 1 1e+08 ns/op\nBenchmarkten_steps/daemon=upstream 1 1.04e+08 ns/op\n"+
		"Benchmarkten_steps/daemon=graphload 1 1e+08 ns/op\nBenchmarkten_steps/daemon=graphload 1 1.04e+08 ns/op\n", buf.String())
}
