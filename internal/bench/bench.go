// Package bench measures the cost of lazy solves to users.
package bench

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
)

// Row is one measurement of the comparison.
type Row struct {
	Name   string
	Unit   Unit
	Bar    float64 // acceptable ratio to upstream's figure, 0 for any
	Noisy  bool    // within the noise of the measurement
	Max    float64 // acceptable figure in units, 0 for any
	Rounds int     // maximum number of rounds, 0 for no maximum
	Run    runFunc
}

type runFunc func(context.Context, *Target) (float64, error)

// Unit is the unit of the figures of a row.
type Unit string

// The units of rows.
const (
	Time  Unit = "ns"
	Bytes Unit = "B"
	Times Unit = "x" // relative to the figure before
)

// Format formats a figure of the unit for people.
func (u Unit) Format(v float64) string {
	switch u {
	case Time:
		return time.Duration(v).Round(10 * time.Microsecond).String()
	case Times:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.0f %s", v, u)
}

// Target is a daemon to measure. The caller must close it.
type Target struct {
	Daemon *testbed.Daemon
	Client *client.Client
	Tree   string // folder of the source of the daemon, for benchmarks of packages
	Root   string // folder of this repository

	builder  *testbed.Builder
	binaries map[string]string // of tests, by package
	temp     []string          // folders that Close removes
}

// NewTarget starts a daemon on a fresh root.
func NewTarget(ctx context.Context, flavor testbed.Flavor) (*Target, error) {
	d, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: flavor, Quiet: true})
	if err != nil {
		return nil, err
	}
	c, err := client.New(ctx, d.Addr)
	if err != nil {
		d.Close()
		return nil, errors.WithStack(err)
	}
	return &Target{Daemon: d, Client: c}, nil
}

// Builder returns a buildx that is connected to the daemon.
func (t *Target) Builder(ctx context.Context) (_ *testbed.Builder, err error) {
	if t.builder == nil {
		t.builder, err = testbed.NewBuilder(ctx, buildxVersion, t.Daemon)
	}
	return t.builder, err
}

// Close stops the daemon.
func (t *Target) Close() error {
	if t.builder != nil {
		t.builder.Close()
	}
	for _, dir := range t.temp {
		os.RemoveAll(dir)
	}
	t.Client.Close()
	return t.Daemon.Close()
}

// timed returns the runFunc of a row whose unit is time.
func timed(f func(context.Context, *Target) (time.Duration, error)) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		d, err := f(ctx, t)
		return float64(d), err
	}
}

var notWord = regexp.MustCompile(`[^A-Za-z0-9]+`)

// ID returns the name without spaces.
func (r Row) ID() string {
	return notWord.ReplaceAllString(r.Name, "_")
}

// Rows are the measurements of the comparison.
var Rows = rows()

// Find returns the rows whose name includes one of the parts, or all if parts is empty.
func Find(parts []string) ([]Row, error) {
	if len(parts) == 0 {
		return Rows, nil
	}
	var out []Row
	for _, row := range Rows {
		for _, part := range parts {
			if strings.Contains(row.Name, part) {
				out = append(out, row)
				break
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Errorf("no row has %q in its name", parts)
	}
	return out, nil
}

func rows() (out []Row) {
	solve := packageBench{pkg: "./solver/llbsolver", files: []string{"bench_test.go"}}
	for _, n := range []int{10, 100, 1000, 5000} {
		out = append(out, Row{
			Name: fmt.Sprintf("solve and evaluate %d steps that do nothing", n), Unit: Time, Bar: 1.0, Noisy: true,
			Run: solve.run(fmt.Sprintf("BenchmarkSolve/then=evaluate/steps=%d", n)),
		}, Row{
			Name: fmt.Sprintf("lazy solve of %d steps; upstream also loads them", n), Unit: Time, Bar: 1.0, Noisy: true,
			Run: solve.compare(fmt.Sprintf("BenchmarkSolve/then=load/steps=%d", n), fmt.Sprintf("BenchmarkSolve/then=nothing/steps=%d", n)),
		})
	}
	discard := packageBench{pkg: "./solver", files: []string{"discard_bench_test.go"}}
	for _, n := range []int{10_000, 50_000} {
		for _, failing := range []bool{false, true} {
			name := "good"
			if failing {
				name = "failing"
			}
			out = append(out, Row{
				Name: fmt.Sprintf("%s build and discard beside %d states", name, n), Unit: Time, Bar: 1.2,
				Run: discard.run(fmt.Sprintf("BenchmarkDiscardBeside/failing=%t/states=%d", failing, n)),
			})
		}
	}
	during := discard
	during.time = "200x" // the timed part is short, but its setup is not
	return append(out,
		Row{Name: "merge a chain of 1600 steps and discard", Unit: Time, Bar: 1.2, Run: discard.run("BenchmarkMergeChain")},
		Row{Name: "discard while another build imports a cache", Unit: Time, Bar: 1.2, Run: during.run("BenchmarkDiscardDuringImport")},
		Row{Name: "100 lazy solves growing to 500 steps", Unit: Time, Run: growing(100, 5)},
		Row{Name: "1000 steps solved 50 times", Unit: Time, Run: repeated(1000, 50)},
		Row{Name: "30 empty builds while 20 builds hold 1000 steps each", Unit: Time, Bar: 1.15, Run: emptyBuilds(30, 20, 1000)},
		Row{Name: "solve and evaluate 150 file ops", Unit: Time, Bar: 1.0, Noisy: true, Run: evaluateFileOps(150)},
		Row{Name: "solve and evaluate 30 exec steps", Unit: Time, Bar: 1.0, Noisy: true, Run: evaluateExecs(30)},
		Row{Name: "Dockerfile of ten stages", Unit: Time, Bar: 1.0, Noisy: true, Run: dockerfile(false)},
		Row{Name: "Dockerfile of ten stages, cached", Unit: Time, Bar: 1.02, Noisy: true, Run: dockerfile(true)},
		Row{Name: "bake of five chained targets on two platforms", Unit: Time, Bar: 1.0, Noisy: true, Run: bake},
		Row{Name: "p99 of status latency while 5000 steps are loaded", Unit: Time, Bar: 1.25, Rounds: 3, Run: statusLatency(5000)},
		Row{Name: "heap of each of 100000 steps", Unit: Bytes, Max: 4 << 10, Rounds: 2, Run: heapHeld(20, 5000)},
		Row{Name: "heap after 100000 steps to heap before", Unit: Times, Max: 1.02, Rounds: 2, Run: heapLeft(20, 5000)},
	)
}
