package main

import (
	"cmp"
	"context"
	stderrors "errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "bake chained targets with buildx on upstream's daemon and on this one: what passes, and how long it takes",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Usage: "runs of each scenario with each buildx on each daemon, 0 for no such table"},
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "runs for the wall times of a chain and a diamond, 0 for no such table"},
			&cli.StringSliceFlag{Name: "buildx", Value: []string{"v0.29.1", "v0.35.0"}, Usage: "versions of buildx for the scenarios"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "scenarios to run, by name (default: secret, chain, ssh)"},
			&cli.StringFlag{Name: "only", Usage: "one daemon only: upstream or graphload"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			scenarios, err := testbed.FindScenarios(cmd.StringSlice("scenario"))
			if err != nil {
				return err
			}
			flavors := testbed.Flavors
			if only := testbed.Flavor(cmd.String("only")); only != "" {
				if !slices.Contains(flavors, only) {
					return errors.Errorf("no daemon %q, there are %v", only, flavors)
				}
				flavors = []testbed.Flavor{only}
			}
			if err := installPackages(ctx); err != nil {
				return err
			}
			for _, flavor := range flavors {
				if cmd.Bool("no-build") {
					break
				}
				opt.Unmodified = flavor == testbed.Upstream
				if _, err := buildBinaries(ctx, opt, false); err != nil {
					return err
				}
			}
			runs, rounds := cmd.Int("runs"), cmd.Int("rounds")
			if rounds > 0 && !cmd.Bool("no-build") {
				if err := buildBuildx(ctx, opt.Root); err != nil {
					return err
				}
			}
			var failed error
			if runs > 0 {
				d := &demo{runs: runs, scenarios: scenarios, versions: cmd.StringSlice("buildx"), columns: flavorColumns(flavors)}
				if err := d.run(ctx); err != nil {
					return err
				}
				failed = d.report()
			}
			if rounds > 0 {
				columns := slices.DeleteFunc(slices.Clone(timeColumns), func(c column) bool { return !slices.Contains(flavors, c.daemon.Flavor) })
				d := &demo{runs: rounds, scenarios: testbed.Timed, versions: timedBuildx, columns: columns}
				if err := d.run(ctx); err != nil {
					return err
				}
				failed = stderrors.Join(failed, d.reportTimes())
			}
			return failed
		},
	}
}

// timedBuildx are the buildx whose times are compared: a release that evaluates linked
// targets at once, one that orders them, and the same patched.
var timedBuildx = []string{"v0.35.0", "v0.38.2", testbed.PatchedBuildx}

// timeColumns are the daemons on which times are compared.
var timeColumns = []column{
	{"upstream", testbed.DaemonOptions{Flavor: testbed.Upstream}},
	{"default", testbed.DaemonOptions{Flavor: testbed.Graphload}},
	{"ahead", testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=ahead"}}},
}

// column is a daemon of the table.
type column struct {
	name   string
	daemon testbed.DaemonOptions
}

// flavorColumns are daemons with their defaults.
func flavorColumns(flavors []testbed.Flavor) (columns []column) {
	for _, flavor := range flavors {
		columns = append(columns, column{string(flavor), testbed.DaemonOptions{Flavor: flavor}})
	}
	return columns
}

// cell is one field of the table.
type cell struct {
	scenario, buildx, column string
}

type figures struct {
	passed  int
	times   []time.Duration // of those that passed
	lastErr error
}

type demo struct {
	runs      int
	scenarios []testbed.Scenario
	versions  []string
	columns   []column
	cells     map[cell]*figures            // filled by run
	done      func(testbed.Scenario) error // called after each scenario, if set
	together  bool                         // instead of in turns
}

// run fills the table. The daemons take turns unless they run together, so that
// whatever else the machine does meets all of them.
func (d *demo) run(ctx context.Context) (retErr error) {
	d.cells = map[cell]*figures{}
	daemons := map[string]*testbed.Daemon{}
	for _, c := range d.columns {
		progressf("starting the %s daemon", c.name)
		daemon, err := testbed.StartDaemon(ctx, c.daemon)
		if err != nil {
			return err
		}
		defer closeLast(daemon, &retErr)
		daemons[c.name] = daemon
	}
	for _, version := range d.versions {
		progressf("building buildx %s, if it is not there", version)
		if _, err := testbed.Buildx(ctx, version); err != nil {
			return err
		}
	}
	for _, scenario := range d.scenarios {
		if err := d.runProject(ctx, scenario, daemons); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) runProject(ctx context.Context, scenario testbed.Scenario, daemons map[string]*testbed.Daemon) (retErr error) {
	progressf("starting what %s needs", scenario.Name)
	p, err := testbed.NewProject(ctx, scenario)
	if err != nil {
		return err
	}
	defer closeLast(p, &retErr)
	for _, version := range d.versions {
		if !scenario.RunsWith(version) {
			continue
		}
		if err := d.runScenario(ctx, p, version, daemons); err != nil {
			return err
		}
	}
	if d.done != nil {
		return d.done(scenario)
	}
	return nil
}

func (d *demo) runScenario(ctx context.Context, p *testbed.Project, version string, daemons map[string]*testbed.Daemon) (retErr error) {
	builders := map[string]*testbed.Builder{}
	for _, c := range d.columns {
		b, err := testbed.NewBuilder(ctx, version, daemons[c.name])
		if err != nil {
			return err
		}
		defer closeLast(b, &retErr)
		builders[c.name] = b
		d.cells[cell{p.Name, version, c.name}] = &figures{}
	}
	once := func(column string) {
		f := d.cells[cell{p.Name, version, column}]
		start := time.Now()
		if err := p.Run(ctx, builders[column]); err != nil {
			f.lastErr = err
			return
		}
		f.passed++
		f.times = append(f.times, time.Since(start))
	}
	for i := range d.runs {
		var wg sync.WaitGroup
		for _, c := range d.columns {
			if d.together {
				wg.Go(func() { once(c.name) })
			} else {
				once(c.name)
			}
		}
		wg.Wait()
		if ctx.Err() != nil {
			return errors.WithStack(context.Cause(ctx))
		}
		var line []string
		for _, c := range d.columns {
			line = append(line, fmt.Sprintf("%s %d/%d", c.name, d.cells[cell{p.Name, version, c.name}].passed, i+1))
		}
		progressf("%s, buildx %s, run %d of %d: %s", p.Name, version, i+1, d.runs, strings.Join(line, ", "))
	}
	return nil
}

// closeLast closes c, and reports what it left behind unless something else has
// failed before.
func closeLast(c io.Closer, err *error) {
	if closeErr := c.Close(); *err == nil {
		*err = closeErr
	}
}

// report prints the table. It fails when a bake failed on the daemon that must
// not fail.
func (d *demo) report() (failed error) {
	err := d.print("SCENARIO", "\tMEDIAN", func(scenario testbed.Scenario, version string, c column, f *figures) string {
		if c.daemon.Flavor == testbed.Graphload && f.passed < d.runs {
			failed = errors.Wrapf(f.lastErr, "%s with buildx %s passed %d of %d", scenario.Name, version, f.passed, d.runs)
		}
		return fmt.Sprintf("%d/%d\t%s", f.passed, d.runs, median(f.times))
	})
	return cmp.Or(err, failed)
}

// reportTimes prints the median times only. All bakes must have passed.
func (d *demo) reportTimes() (failed error) {
	fmt.Println()
	err := d.print("TARGETS", "", func(scenario testbed.Scenario, version string, c column, f *figures) string {
		if f.passed < d.runs {
			failed = errors.Wrapf(f.lastErr, "%s with buildx %s on the %s daemon passed %d of %d", scenario.Name, version, c.name, f.passed, d.runs)
		}
		return median(f.times)
	})
	return cmp.Or(err, failed)
}

// print prints a row for each scenario and buildx, with what field returns for each
// daemon, and then what the scenarios are. More is in the heading after the name of each
// daemon.
func (d *demo) print(heading, more string, field func(scenario testbed.Scenario, version string, c column, f *figures) string) error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprint(tw, heading+"\tBUILDX")
	for _, c := range d.columns {
		fmt.Fprintf(tw, "\t%s%s", strings.ToUpper(c.name), more)
	}
	fmt.Fprintln(tw)
	for _, scenario := range d.scenarios {
		for _, version := range d.versions {
			if !scenario.RunsWith(version) {
				continue
			}
			fmt.Fprintf(tw, "%s\t%s", scenario.Name, version)
			for _, c := range d.columns {
				fmt.Fprintf(tw, "\t%s", field(scenario, version, c, d.cells[cell{scenario.Name, version, c.name}]))
			}
			fmt.Fprintln(tw)
		}
	}
	fmt.Fprintln(tw)
	for _, scenario := range d.scenarios {
		fmt.Fprintf(tw, "%s\t%s\n", scenario.Name, scenario.About)
	}
	return errors.WithStack(tw.Flush())
}

func median(times []time.Duration) string {
	if len(times) == 0 {
		return "-"
	}
	return medianOf(times).Round(10 * time.Millisecond).String()
}
