// Package demo bakes chained targets with buildx on upstream's daemon and on this one,
// and compares which bakes pass and how long they take.
package demo

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/bench"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
)

// TimedBuildx are the versions of buildx whose times are compared: one that evaluates
// linked targets at once, one that orders them, and a patched build of the latter.
var TimedBuildx = []string{"v0.35.0", "v0.38.2", testbed.PatchedBuildx}

// TimeColumns are the daemons on which times are compared.
var TimeColumns = []Column{
	{Name: "upstream", Daemon: testbed.DaemonOptions{Flavor: testbed.Upstream}},
	{Name: "default", Daemon: testbed.DaemonOptions{Flavor: testbed.Graphload}},
	{Name: "ahead", Daemon: testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=ahead"}}},
}

// Column is a daemon of the table.
type Column struct {
	Name   string
	Daemon testbed.DaemonOptions
	Engine bool // a Docker engine of this flavor instead
}

// daemon is buildkitd or a Docker engine.
type daemon interface {
	NewBuilder(ctx context.Context, version string) (*testbed.Builder, error)
	Close() error
}

// buildkitd is connected through the remote driver.
type buildkitd struct {
	*testbed.Daemon
}

func (d buildkitd) NewBuilder(ctx context.Context, version string) (*testbed.Builder, error) {
	return testbed.NewBuilder(ctx, version, d.Daemon)
}

// start starts the daemon of the column.
func (c Column) start(ctx context.Context) (daemon, error) {
	if c.Engine {
		progress.Printf("starting the %s engine", c.Name)
		e, err := testbed.StartEngine(ctx, testbed.EngineOptions{Flavor: c.Daemon.Flavor})
		return e, err
	}
	progress.Printf("starting the %s daemon", c.Name)
	d, err := testbed.StartDaemon(ctx, c.Daemon)
	return buildkitd{d}, err
}

// Columns are daemons with their defaults.
func Columns(flavors []testbed.Flavor) (columns []Column) {
	for _, flavor := range flavors {
		columns = append(columns, Column{Name: string(flavor), Daemon: testbed.DaemonOptions{Flavor: flavor}})
	}
	return columns
}

// EngineColumns are Docker engines.
func EngineColumns(flavors []testbed.Flavor) []Column {
	columns := Columns(flavors)
	for i := range columns {
		columns[i].Engine = true
	}
	return columns
}

// cell is one field of the table.
type cell struct {
	scenario, buildx, column string
}

type figures struct {
	passed  int
	times   []time.Duration // of runs that passed
	lastErr error
}

// Table counts the runs that pass, with their times, on several daemons.
type Table struct {
	Runs      int
	Scenarios []testbed.Scenario
	Buildx    []string // versions
	Columns   []Column
	Together  bool                         // the daemons run at the same time, not in turns
	Done      func(testbed.Scenario) error // called after each scenario, if set

	cells map[cell]*figures // filled by Run
}

// Run fills the table. The daemons take turns unless they run together, so that other
// load on the machine affects all of them.
func (t *Table) Run(ctx context.Context) (retErr error) {
	t.cells = map[cell]*figures{}
	daemons := map[string]daemon{}
	for _, c := range t.Columns {
		d, err := c.start(ctx)
		if err != nil {
			return err
		}
		defer testbed.CloseLast(d, &retErr)
		daemons[c.Name] = d
	}
	for _, version := range t.Buildx {
		progress.Printf("building buildx %s, if it is not there", version)
		if _, err := testbed.Buildx(ctx, version); err != nil {
			return err
		}
	}
	for _, scenario := range t.Scenarios {
		if err := t.runProject(ctx, scenario, daemons); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) runProject(ctx context.Context, scenario testbed.Scenario, daemons map[string]daemon) (retErr error) {
	progress.Printf("starting the services that %s needs", scenario.Name)
	p, err := testbed.NewProject(ctx, scenario)
	if err != nil {
		return err
	}
	defer testbed.CloseLast(p, &retErr)
	for _, version := range t.Buildx {
		if !scenario.RunsWith(version) {
			continue
		}
		if err := t.runScenario(ctx, p, version, daemons); err != nil {
			return err
		}
	}
	if t.Done != nil {
		return t.Done(scenario)
	}
	return nil
}

func (t *Table) runScenario(ctx context.Context, p *testbed.Project, version string, daemons map[string]daemon) (retErr error) {
	builders := map[string]*testbed.Builder{}
	for _, c := range t.Columns {
		b, err := daemons[c.Name].NewBuilder(ctx, version)
		if err != nil {
			return err
		}
		defer testbed.CloseLast(b, &retErr)
		builders[c.Name] = b
		t.cells[cell{p.Name, version, c.Name}] = &figures{}
	}
	once := func(column string) {
		f := t.cells[cell{p.Name, version, column}]
		start := time.Now()
		if err := p.Run(ctx, builders[column]); err != nil {
			f.lastErr = err
			return
		}
		f.passed++
		f.times = append(f.times, time.Since(start))
	}
	for i := range t.Runs {
		var wg sync.WaitGroup
		for _, c := range t.Columns {
			if t.Together {
				wg.Go(func() { once(c.Name) })
			} else {
				once(c.Name)
			}
		}
		wg.Wait()
		if ctx.Err() != nil {
			return errors.WithStack(context.Cause(ctx))
		}
		var line []string
		for _, c := range t.Columns {
			line = append(line, fmt.Sprintf("%s %d/%d", c.Name, t.cells[cell{p.Name, version, c.Name}].passed, i+1))
		}
		progress.Printf("%s, buildx %s, run %d of %d: %s", p.Name, version, i+1, t.Runs, strings.Join(line, ", "))
	}
	return nil
}

// Report prints the table. It returns an error if a bake failed on the daemon with the
// change.
func (t *Table) Report() (failed error) {
	err := t.print("SCENARIO", "\tMEDIAN", func(scenario testbed.Scenario, version string, c Column, f *figures) string {
		if c.Daemon.Flavor == testbed.Graphload && f.passed < t.Runs {
			failed = errors.Wrapf(f.lastErr, "%s with buildx %s passed %d of %d", scenario.Name, version, f.passed, t.Runs)
		}
		return fmt.Sprintf("%d/%d\t%s", f.passed, t.Runs, median(f.times))
	})
	return cmp.Or(err, failed)
}

// ReportTimes prints only the median times. It returns an error if a bake failed.
func (t *Table) ReportTimes() (failed error) {
	fmt.Println()
	err := t.print("TARGETS", "", func(scenario testbed.Scenario, version string, c Column, f *figures) string {
		if f.passed < t.Runs {
			failed = errors.Wrapf(f.lastErr, "%s with buildx %s on the %s daemon passed %d of %d", scenario.Name, version, c.Name, f.passed, t.Runs)
		}
		return median(f.times)
	})
	return cmp.Or(err, failed)
}

// print prints a row for each scenario and buildx, with the result of field for each
// daemon, and then a description of the scenarios. In the heading, more follows the
// name of each daemon.
func (t *Table) print(heading, more string, field func(scenario testbed.Scenario, version string, c Column, f *figures) string) error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprint(tw, heading+"\tBUILDX")
	for _, c := range t.Columns {
		fmt.Fprintf(tw, "\t%s%s", strings.ToUpper(c.Name), more)
	}
	fmt.Fprintln(tw)
	for _, scenario := range t.Scenarios {
		for _, version := range t.Buildx {
			if !scenario.RunsWith(version) {
				continue
			}
			fmt.Fprintf(tw, "%s\t%s", scenario.Name, version)
			for _, c := range t.Columns {
				fmt.Fprintf(tw, "\t%s", field(scenario, version, c, t.cells[cell{scenario.Name, version, c.Name}]))
			}
			fmt.Fprintln(tw)
		}
	}
	fmt.Fprintln(tw)
	for _, scenario := range t.Scenarios {
		fmt.Fprintf(tw, "%s\t%s\n", scenario.Name, scenario.About)
	}
	return errors.WithStack(tw.Flush())
}

// Passed returns how often a scenario has passed with a buildx on a daemon.
func (t *Table) Passed(scenario testbed.Scenario, buildx, column string) int {
	return t.cells[cell{scenario.Name, buildx, column}].passed
}

func median(times []time.Duration) string {
	if len(times) == 0 {
		return "-"
	}
	return bench.Median(times).Round(10 * time.Millisecond).String()
}
