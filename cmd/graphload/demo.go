package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "bake chained targets with unmodified buildx on upstream's daemon and on this one",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Usage: "runs of each loop with each buildx on each daemon"},
			&cli.StringSliceFlag{Name: "buildx", Value: []string{"v0.29.1", "v0.35.0"}, Usage: "versions of buildx"},
			&cli.StringSliceFlag{Name: "loop", Usage: "loops to run, by name (default: secret, chain, ssh)"},
			&cli.StringFlag{Name: "only", Usage: "one daemon only: upstream or graphload"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			loops, err := testbed.FindLoops(cmd.StringSlice("loop"))
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
				opt.Pristine = flavor == testbed.Upstream
				if _, err := buildBinaries(ctx, opt, false); err != nil {
					return err
				}
			}
			d := &demo{runs: cmd.Int("runs"), loops: loops, versions: cmd.StringSlice("buildx"), flavors: flavors, cells: map[cell]*figures{}}
			if err := d.run(ctx); err != nil {
				return err
			}
			return d.report()
		},
	}
}

// cell is one field of the table.
type cell struct {
	loop, buildx string
	flavor       testbed.Flavor
}

type figures struct {
	passed  int
	times   []time.Duration // of those that passed
	lastErr error
}

type demo struct {
	runs     int
	loops    []testbed.Loop
	versions []string
	flavors  []testbed.Flavor
	cells    map[cell]*figures
	done     func(testbed.Loop) error // called after each loop, if set
	together bool                     // instead of in turns
}

// run fills the table. Both daemons take turns unless they run together, so that
// whatever else the machine does meets both.
func (d *demo) run(ctx context.Context) (retErr error) {
	daemons := map[testbed.Flavor]*testbed.Daemon{}
	for _, flavor := range d.flavors {
		progressf("starting the %s daemon", flavor)
		daemon, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: flavor})
		if err != nil {
			return err
		}
		defer closeLast(daemon, &retErr)
		daemons[flavor] = daemon
	}
	for _, version := range d.versions {
		progressf("building buildx %s, if it is not there", version)
		if _, err := testbed.Buildx(ctx, version); err != nil {
			return err
		}
	}
	for _, loop := range d.loops {
		if err := d.runProject(ctx, loop, daemons); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) runProject(ctx context.Context, loop testbed.Loop, daemons map[testbed.Flavor]*testbed.Daemon) (retErr error) {
	progressf("starting what %s needs", loop.Name)
	p, err := testbed.NewProject(ctx, loop)
	if err != nil {
		return err
	}
	defer closeLast(p, &retErr)
	for _, version := range d.versions {
		if !loop.RunsWith(version) {
			continue
		}
		if err := d.runLoop(ctx, p, version, daemons); err != nil {
			return err
		}
	}
	if d.done != nil {
		return d.done(loop)
	}
	return nil
}

func (d *demo) runLoop(ctx context.Context, p *testbed.Project, version string, daemons map[testbed.Flavor]*testbed.Daemon) (retErr error) {
	builders := map[testbed.Flavor]*testbed.Builder{}
	for _, flavor := range d.flavors {
		b, err := testbed.NewBuilder(ctx, version, daemons[flavor])
		if err != nil {
			return err
		}
		defer closeLast(b, &retErr)
		builders[flavor] = b
		d.cells[cell{p.Name, version, flavor}] = &figures{}
	}
	once := func(flavor testbed.Flavor) {
		f := d.cells[cell{p.Name, version, flavor}]
		start := time.Now()
		if err := p.Run(ctx, builders[flavor]); err != nil {
			f.lastErr = err
			return
		}
		f.passed++
		f.times = append(f.times, time.Since(start))
	}
	for i := range d.runs {
		var wg sync.WaitGroup
		for _, flavor := range d.flavors {
			if d.together {
				wg.Go(func() { once(flavor) })
			} else {
				once(flavor)
			}
		}
		wg.Wait()
		if ctx.Err() != nil {
			return errors.WithStack(context.Cause(ctx))
		}
		var line []string
		for _, flavor := range d.flavors {
			line = append(line, fmt.Sprintf("%s %d/%d", flavor, d.cells[cell{p.Name, version, flavor}].passed, i+1))
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
func (d *demo) report() error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprint(tw, "LOOP\tBUILDX")
	for _, flavor := range d.flavors {
		fmt.Fprintf(tw, "\t%s\tMEDIAN", strings.ToUpper(string(flavor)))
	}
	fmt.Fprintln(tw)
	var failed error
	for _, loop := range d.loops {
		for _, version := range d.versions {
			if !loop.RunsWith(version) {
				continue
			}
			fmt.Fprintf(tw, "%s\t%s", loop.Name, version)
			for _, flavor := range d.flavors {
				f := d.cells[cell{loop.Name, version, flavor}]
				fmt.Fprintf(tw, "\t%d/%d\t%s", f.passed, d.runs, median(f.times))
				if flavor == testbed.Graphload && f.passed < d.runs {
					failed = errors.Wrapf(f.lastErr, "%s with buildx %s passed %d of %d", loop.Name, version, f.passed, d.runs)
				}
			}
			fmt.Fprintln(tw)
		}
	}
	fmt.Fprintln(tw)
	for _, loop := range d.loops {
		fmt.Fprintf(tw, "%s\t%s\n", loop.Name, loop.About)
	}
	if err := tw.Flush(); err != nil {
		return errors.WithStack(err)
	}
	return failed
}

func median(times []time.Duration) string {
	if len(times) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2].Round(10 * time.Millisecond).String()
}
