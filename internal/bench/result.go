package bench

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
)

// Result has the measurements of a row on both daemons.
type Result struct {
	Row
	Samples map[testbed.Flavor][]float64
}

const (
	// Rows that take less time than minRowTime run more rounds.
	minRowTime = 20 * time.Second
	maxRounds  = 150
)

// Measure runs a row on the daemons in turns, and changes which daemon is first each
// time. The first turn warms up and does not count.
func Measure(ctx context.Context, row Row, targets map[testbed.Flavor]*Target, rounds int) (*Result, error) {
	most := maxRounds
	if row.Rounds > 0 {
		rounds, most = min(rounds, row.Rounds), row.Rounds
	}
	r := &Result{Row: row, Samples: map[testbed.Flavor][]float64{}}
	start := time.Now()
	order := slices.Clone(testbed.Flavors)
	for i := 0; i <= rounds || i <= most && time.Since(start) < minRowTime; i++ {
		for _, flavor := range order {
			v, err := row.Run(ctx, targets[flavor])
			if err != nil {
				return nil, errors.Wrapf(err, "%s on the %s daemon", row.Name, flavor)
			}
			if i > 0 {
				r.Samples[flavor] = append(r.Samples[flavor], v)
			}
		}
		slices.Reverse(order)
	}
	return r, nil
}

// MeasureAll runs rows one after another.
func MeasureAll(ctx context.Context, rows []Row, targets map[testbed.Flavor]*Target, rounds int) (results []*Result, _ error) {
	for _, row := range rows {
		r, err := Measure(ctx, row, targets, rounds)
		if err != nil {
			return nil, err
		}
		progress.Printf("%s: %.3f", row.Name, r.Ratio())
		results = append(results, r)
	}
	return results, nil
}

// Median returns the upper median.
func Median[T cmp.Ordered](v []T) T {
	return slices.Sorted(slices.Values(v))[len(v)/2]
}

// Median returns the median of a daemon.
func (r *Result) Median(flavor testbed.Flavor) float64 {
	return Median(r.Samples[flavor])
}

// Ratio returns the ratio of the median of graphload to that of upstream.
func (r *Result) Ratio() float64 {
	return r.Median(testbed.Graphload) / r.Median(testbed.Upstream)
}

// Interval returns the 95% confidence interval of the ratio, by bootstrapping.
func (r *Result) Interval() (lo, hi float64) {
	const resamples = 2000
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same for the same samples
	resample := func(v []float64) float64 {
		out := make([]float64, len(v))
		for i := range out {
			out[i] = v[rnd.IntN(len(v))]
		}
		return Median(out)
	}
	ratios := make([]float64, resamples)
	for i := range ratios {
		ratios[i] = resample(r.Samples[testbed.Graphload]) / resample(r.Samples[testbed.Upstream])
	}
	slices.Sort(ratios)
	return ratios[resamples*25/1000], ratios[resamples*975/1000]
}

// Missed reports whether the row is over its bar. If the bar is upstream's figure, the
// ratio of two equal daemons is above it half of the time, so the whole interval must
// be above it.
func (r *Result) Missed() bool {
	if r.Max > 0 && r.Median(testbed.Graphload) > r.Max {
		return true
	}
	lo, _ := r.Interval()
	switch {
	case r.Bar == 0:
		return false
	case r.Noisy:
		return lo > r.Bar
	}
	return r.Ratio() > r.Bar
}

// WriteTable writes results for people.
func WriteTable(w io.Writer, results []*Result) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "WORK\tROUNDS\tUPSTREAM\tGRAPHLOAD\tRATIO\t95%\tBAR\t")
	for _, r := range results {
		fmt.Fprintln(tw, strings.Join(append(r.cells(), r.mark()), "\t"))
	}
	return errors.WithStack(tw.Flush())
}

// WriteMarkdown writes results as a table in Markdown.
func WriteMarkdown(w io.Writer, results []*Result) error {
	fmt.Fprintln(w, "| work | rounds | upstream | graphload | ratio | 95 % | bar | |\n|---|---|---|---|---|---|---|---|")
	for _, r := range results {
		if _, err := fmt.Fprintf(w, "| %s | %s |\n", strings.Join(r.cells(), " | "), r.mark()); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

func (r *Result) cells() []string {
	lo, hi := r.Interval()
	bar := "none"
	switch {
	case r.Bar > 0:
		bar = fmt.Sprintf("%.2f", r.Bar)
	case r.Max > 0:
		bar = "at most " + r.Unit.Format(r.Max)
	}
	return []string{
		r.Name,
		fmt.Sprint(len(r.Samples[testbed.Graphload])),
		r.Unit.Format(r.Median(testbed.Upstream)),
		r.Unit.Format(r.Median(testbed.Graphload)),
		fmt.Sprintf("%.2f", r.Ratio()),
		fmt.Sprintf("%.2f-%.2f", lo, hi),
		bar,
	}
}

func (r *Result) mark() string {
	if r.Missed() {
		return "missed"
	}
	return ""
}

// WriteBenchstat writes every measurement in the format that benchstat reads.
func WriteBenchstat(w io.Writer, results []*Result) error {
	for _, r := range results {
		for _, flavor := range testbed.Flavors {
			for _, v := range r.Samples[flavor] {
				if _, err := fmt.Fprintf(w, "Benchmark%s/daemon=%s 1 %g %s/op\n", r.ID(), flavor, v, r.Unit); err != nil {
					return errors.WithStack(err)
				}
			}
		}
	}
	return nil
}

// WriteFiles writes results to a folder, for benchstat and as Markdown.
func WriteFiles(dir string, results []*Result) error {
	for name, write := range map[string]func(io.Writer, []*Result) error{"bench.txt": WriteBenchstat, "bench.md": WriteMarkdown} {
		var buf bytes.Buffer
		if err := write(&buf, results); err != nil {
			return err
		}
		if err := files.Write(filepath.Join(dir, name), buf.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
