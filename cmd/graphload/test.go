package main

import (
	"context"
	stderrors "errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/bench"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/compat"
	"github.com/graphload/graphload/internal/conformance"
	"github.com/graphload/graphload/internal/demo"
	"github.com/graphload/graphload/internal/embed"
	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/fuzz"
	"github.com/graphload/graphload/internal/gotest"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/graphload/graphload/internal/usage"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func testCommand() *cli.Command {
	return &cli.Command{
		Name:  "test",
		Usage: "run the tests of this repository and of the packages that it changes",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tree-only", Usage: "only the packages of the assembled trees"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			t, err := plan(ctx, cmd, true)
			if err != nil {
				return err
			}
			failed := []error{gotest.Tree(ctx, t)}
			buildx, err := build.BuildxTree(ctx, t.Root)
			if err == nil {
				err = gotest.Tree(ctx, buildx)
			}
			failed = append(failed, err)
			if !cmd.Bool("tree-only") {
				failed = append(failed, testRepository(ctx, t.Options))
			}
			return stderrors.Join(failed...)
		},
	}
}

// testRepository runs the tests of the repository itself. The end-to-end tests use
// the binaries of both trees.
func testRepository(ctx context.Context, opt assemble.Options) error {
	if os.Getuid() == 0 {
		sets := []apt.Commands{apt.Tests}
		if os.Getenv("CI") == "true" { // CI fails tests that lack a program
			sets = append(sets, apt.Units)
		}
		if err := apt.Install(ctx, sets...); err != nil {
			return err
		}
	} else if err := testbed.Check(); err != nil {
		progress.Printf("end-to-end tests are skipped: %v", err)
	}
	if err := build.All(ctx, opt); err != nil {
		return err
	}
	if err := gotest.Run(ctx, opt.Root, "-timeout", "40m", "./..."); err != nil {
		return err
	}
	kubernetes := filepath.Join(opt.Root, "examples", "kubernetes")
	if err := gotest.Run(ctx, kubernetes, "./..."); err != nil {
		return err
	}
	// this example requires the default release; its committed go.mod has the lines
	// that embed adds
	def, err := upstream.DefaultVersion(opt.Root)
	if err != nil || opt.Version != def {
		return err
	}
	dir := filepath.Join(opt.Root, "examples", "embed")
	if _, err := embed.Embed(ctx, os.Stderr, opt.Root, dir); err != nil {
		return err
	}
	return gotest.Run(ctx, dir, "./...")
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "bake chained targets with buildx on upstream's daemon and on this one: what passes, and how long it takes",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Validator: usage.AtLeast(0), Usage: "runs of each scenario with each buildx on each daemon, 0 for no such table"},
			&cli.IntFlag{Name: "rounds", Value: 5, Validator: usage.AtLeast(0), Usage: "runs for the wall times of a chain and a diamond, 0 for no such table"},
			&cli.StringSliceFlag{Name: "buildx", Value: []string{"v0.29.1", "v0.35.0"}, Usage: "versions of buildx for the scenarios"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "scenarios to run, by name (default: secret, chain, ssh)"},
			&cli.StringFlag{Name: "only", Usage: "one daemon only: upstream or graphload"},
			&cli.BoolFlag{Name: "engine", Usage: "on Docker engines instead, where docker compose build takes part and no wall times are measured"},
			noBuildFlag(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			runs, rounds, engines := cmd.Int("runs"), cmd.Int("rounds"), cmd.Bool("engine")
			find := testbed.FindScenarios
			if engines {
				find = testbed.FindEngineScenarios
			}
			scenarios, err := find(cmd.StringSlice("scenario"))
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
			switch {
			case engines && releaseFlag(cmd) != "":
				return errEngineRelease
			case engines && cmd.IsSet("rounds"):
				return errors.New("no wall times are measured with --engine: leave --rounds out")
			case engines && runs == 0:
				return errors.New("--runs 0 leaves no table with --engine")
			case runs == 0 && rounds == 0:
				return errors.New("--runs 0 and --rounds 0 leave no table")
			}
			if err := testbed.CheckBuildx(cmd.StringSlice("buildx")); err != nil {
				return err
			}
			if err := apt.Install(ctx, apt.Tests); err != nil {
				return err
			}
			if !cmd.Bool("no-build") {
				for _, flavor := range flavors {
					opt.Unmodified = flavor == testbed.Upstream
					if engines {
						_, err = engine.Binaries(ctx, opt.Root, engine.DefaultVersion, opt.Unmodified)
					} else {
						_, err = build.Daemon(ctx, opt, false)
					}
					if err != nil {
						return err
					}
				}
			}
			columns := demo.Columns(flavors)
			if engines {
				rounds, columns = 0, demo.EngineColumns(flavors)
			}
			if rounds > 0 && !cmd.Bool("no-build") {
				if err := build.Buildx(ctx, opt.Root); err != nil {
					return err
				}
			}
			var failed error
			if runs > 0 {
				t := &demo.Table{Runs: runs, Scenarios: scenarios, Buildx: cmd.StringSlice("buildx"), Columns: columns}
				if err := t.Run(ctx); err != nil {
					return err
				}
				failed = t.Report()
			}
			if rounds > 0 {
				columns := slices.DeleteFunc(slices.Clone(demo.TimeColumns), func(c demo.Column) bool { return !slices.Contains(flavors, c.Daemon.Flavor) })
				t := &demo.Table{Runs: rounds, Scenarios: testbed.Timed, Buildx: demo.TimedBuildx, Columns: columns}
				if err := t.Run(ctx); err != nil {
					return err
				}
				failed = stderrors.Join(failed, t.ReportTimes())
			}
			return failed
		},
	}
}

// prepareIntegration installs and builds the programs for end-to-end tests, and returns
// the options. Unless testbed.LogsEnv is set, tests that fail write logs to build/logs.
func prepareIntegration(ctx context.Context, cmd *cli.Command, sets ...apt.Commands) (assemble.Options, error) {
	opt, err := options(cmd)
	if err != nil {
		return opt, err
	}
	if err := apt.Install(ctx, append(sets, apt.Tests)...); err != nil {
		return opt, err
	}
	if os.Getenv(testbed.LogsEnv) == "" {
		if err := os.Setenv(testbed.LogsEnv, filepath.Join(opt.Root, "build", "logs")); err != nil {
			return opt, errors.WithStack(err)
		}
	}
	if cmd.Bool("no-build") {
		return opt, nil
	}
	return opt, build.All(ctx, opt)
}

// testIntegration runs end-to-end tests without a timeout.
func testIntegration(ctx context.Context, root string, args ...string) error {
	return gotest.Run(ctx, root, append([]string{"-timeout", "0", "-count", "1", "-v"}, args...)...)
}

func integrationCommand() *cli.Command {
	return &cli.Command{
		Name:  "integration",
		Usage: "run all end-to-end tests and write the table of clients",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Validator: usage.AtLeast(1), Usage: "runs of each bake with each buildx on each daemon"},
			&cli.StringSliceFlag{Name: "buildx", Value: testbed.BuildxVersions(), Usage: "versions of buildx"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "only these scenarios, by name; the other rows of the table stay as they are"},
			&cli.IntFlag{Name: "graphs", Value: 300, Validator: usage.AtLeast(0), Usage: "random graphs"},
			&cli.IntFlag{Name: "chains", Value: 200, Validator: usage.AtLeast(1), Usage: "chains that are built at once"},
			&cli.DurationFlag{Name: "duration", Value: 5 * time.Minute, Validator: usage.MoreThanZero, Usage: "how long many clients build random graphs"},
			&cli.BoolFlag{Name: "table-only", Usage: "only what is in the table, without the other tests"},
			noBuildFlag(),
			outputFlag(filepath.Join("docs", "compatibility.md"), "file for the table; build has the one of the same name with .json"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if _, err := testbed.FindScenarios(cmd.StringSlice("scenario")); err != nil {
				return err
			}
			if err := testbed.CheckBuildx(cmd.StringSlice("buildx")); err != nil {
				return err
			}
			opt, err := prepareIntegration(ctx, cmd, apt.Compilers, apt.Units)
			if err != nil {
				return err
			}
			t := &compat.Table{
				Version: opt.Version, Date: time.Now(), Runs: cmd.Int("runs"), Buildx: cmd.StringSlice("buildx"),
				Scenarios: cmd.StringSlice("scenario"), Markdown: cmd.String("output"),
			}
			t.JSON = filepath.Join(opt.Root, "build", strings.TrimSuffix(filepath.Base(t.Markdown), ".md")+".json")
			failed := t.Fill(ctx, opt.Root)
			if cmd.Bool("table-only") || len(t.Scenarios) > 0 || ctx.Err() != nil {
				return failed
			}
			return stderrors.Join(failed, testIntegration(ctx, opt.Root, "./integration/...", "-docker", "-credentials",
				"-graphs", fmt.Sprint(cmd.Int("graphs")), "-chains", fmt.Sprint(cmd.Int("chains")), "-duration", cmd.Duration("duration").String()))
		},
	}
}

func soakCommand() *cli.Command {
	return &cli.Command{
		Name:  "soak",
		Usage: "run random graphs for hours",
		Description: "10,000 graphs take about three hours of CPU time. The daemon syncs many small writes.\n" +
			"With TMPDIR on a tmpfs, such as /dev/shm, it uses less than half as much CPU time.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "graphs", Value: 10_000, Validator: usage.AtLeast(1), Usage: "random graphs"},
			&cli.Uint64Flag{Name: "seed", Usage: "seed of the graphs, 0 for a random seed"},
			&cli.DurationFlag{Name: "duration", Value: 5 * time.Minute, Validator: usage.MoreThanZero, Usage: "how long many clients build random graphs"},
			noBuildFlag(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := prepareIntegration(ctx, cmd)
			if err != nil {
				return err
			}
			return testIntegration(ctx, opt.Root, "-run", "^(TestRandomGraphs|TestRandomGraphsAhead|TestClients|TestChainsAtOnce|TestAheadChainsAtOnce)$", "./integration",
				"-chains", "200", "-graphs", fmt.Sprint(cmd.Int("graphs")), "-seed", fmt.Sprint(cmd.Uint64("seed")), "-duration", cmd.Duration("duration").String())
		},
	}
}

func dockerCommand() *cli.Command {
	return &cli.Command{
		Name:  "docker",
		Usage: "run the images in a temporary Docker engine: bake chained targets, upgrade a builder in place, rootless, mTLS and systemd",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Validator: usage.AtLeast(1), Usage: "runs of each scenario with each buildx"},
			&cli.StringFlag{Name: "run", Value: "^(TestDocker.*|TestMutualTLS|TestSystemdUnits|TestSocketActivation)$", Validator: usage.Expression, Usage: "tests to run"},
			noBuildFlag(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := prepareIntegration(ctx, cmd, apt.Compilers, apt.Units)
			if err != nil {
				return err
			}
			progress.Printf("fetching Debian's Docker engine, if it is not there")
			if err := testbed.FetchDocker(ctx); err != nil {
				return err
			}
			return testIntegration(ctx, opt.Root, "-run", cmd.String("run"), "./integration", "-docker", "-container-runs", fmt.Sprint(cmd.Int("runs")))
		},
	}
}

// testEngines tests builds on upstream's Docker engine and on the one with the change.
func testEngines(ctx context.Context, cmd *cli.Command, root string) error {
	if err := prepareEngines(ctx, cmd, root); err != nil {
		return err
	}
	if run := cmd.String("run"); run != "" {
		return testIntegration(ctx, root, "-run", run, "./integration", "-engine", "-container-runs", fmt.Sprint(cmd.Int("runs")))
	}
	t := &compat.EngineTable{
		Engines: map[testbed.Flavor]string{}, Date: time.Now(), Runs: cmd.Int("runs"), Markdown: filepath.Join(root, "docs", "compatibility.md"),
	}
	for _, flavor := range testbed.Flavors {
		var err error
		if t.Engines[flavor], err = testbed.EngineVersion(ctx, flavor); err != nil {
			return err
		}
	}
	return t.Fill(ctx, root)
}

// conformEngines runs the engine's own tests with both engines.
func conformEngines(ctx context.Context, cmd *cli.Command, root string) error {
	if err := prepareEngines(ctx, cmd, root); err != nil {
		return err
	}
	opt := conformance.EngineOptions{
		Root: root, Run: cmd.String("run"), Retries: cmd.Int("retries"), Timeout: time.Hour, Progress: progress.Printf,
		Output: filepath.Join(root, "build", "conformance", "engine-"+engine.DefaultVersion),
	}
	if err := conformance.Clear(opt.Output); err != nil {
		return err
	}
	report, err := conformance.RunEngine(ctx, opt)
	if err != nil {
		return err
	}
	fmt.Print(report.Markdown())
	if failures := report.Failures(); len(failures) > 0 {
		return errors.Errorf("%s: see %s", strings.Join(failures, "; "), opt.Output)
	}
	return nil
}

// prepareEngines installs and builds what testEngines and conformEngines need.
func prepareEngines(ctx context.Context, cmd *cli.Command, root string) error {
	if err := apt.Install(ctx, apt.Tests); err != nil {
		return err
	}
	if !cmd.Bool("no-build") {
		for _, unmodified := range []bool{true, false} {
			if err := buildEngine(ctx, root, cmd.String("version"), unmodified); err != nil {
				return err
			}
		}
	}
	return nil
}

func conformanceCommand() *cli.Command {
	return &cli.Command{
		Name:  "conformance",
		Usage: "run upstream's own tests with both daemons and compare each test",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "suite", Usage: "folders of packages: " + strings.Join(conformance.Suites, ", ") + " (default: all)"},
			&cli.StringFlag{Name: "run", Validator: usage.Expression, Usage: "only tests that match, as with go test -run"},
			&cli.StringFlag{Name: "worker", Value: "oci", Usage: "worker of the daemons: " + strings.Join(conformance.Workers, " or ")},
			&cli.IntFlag{Name: "retries", Value: 3, Validator: usage.AtLeast(0), Usage: "how often tests that differ are run again"},
			&cli.DurationFlag{Name: "timeout", Value: 2 * time.Hour, Validator: usage.MoreThanZero, Usage: "for the tests of one package"},
			&cli.BoolFlag{Name: "race", Usage: "use daemons with the race detector"},
			noBuildFlag(),
			outputFlag("", "folder for the reports (default: one in build/conformance, for what is selected by the other flags)"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			if os.Getuid() != 0 {
				return errors.New("the daemons that are tested need root")
			}
			c := conformance.Options{
				Run:      cmd.String("run"),
				Worker:   cmd.String("worker"),
				Retries:  cmd.Int("retries"),
				Timeout:  cmd.Duration("timeout"),
				Race:     cmd.Bool("race"),
				Output:   cmd.String("output"),
				Progress: progress.Printf,
			}
			pkgs := []apt.Commands{apt.Tests}
			switch {
			case !slices.Contains(conformance.Workers, c.Worker):
				return errors.Errorf("no worker %q, there are: %s", c.Worker, strings.Join(conformance.Workers, ", "))
			case c.Worker == "containerd":
				pkgs = append(pkgs, apt.Containerd)
			}
			if c.Suites, err = conformance.Select(cmd.StringSlice("suite")); err != nil {
				return err
			}
			if c.Output == "" {
				c.Output = filepath.Join(opt.Root, "build", "conformance", c.Name(opt.Version))
			}
			if err := conformance.Clear(c.Output); err != nil {
				return err
			}
			if err := apt.Install(ctx, pkgs...); err != nil {
				return err
			}
			if c.Registry, err = testbed.RegistryBinary(ctx); err != nil {
				return err
			}
			for flavor := range c.Trees {
				opt.Unmodified = flavor == conformance.Upstream
				if c.Trees[flavor], err = build.Tree(ctx, opt); err != nil {
					return err
				}
				if c.Bin[flavor], err = build.Dir(opt, c.Race); err == nil && !cmd.Bool("no-build") {
					_, err = build.InTree(ctx, c.Trees[flavor], c.Race)
				}
				if err != nil {
					return err
				}
			}
			report, err := conformance.Run(ctx, c)
			if err != nil {
				return err
			}
			fmt.Print(report.Markdown())
			if failures := report.Failures(); len(failures) > 0 {
				return errors.Errorf("%s: see %s", strings.Join(failures, "; "), c.Output)
			}
			return nil
		},
	}
}

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "compare the cost of lazy solves with upstream's daemon",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 15, Validator: usage.AtLeast(1), Usage: "measurements of each row on each daemon, at least"},
			&cli.StringSliceFlag{Name: "row", Usage: "rows to measure, by a part of their name (default: all)"},
			outputFlag("build/bench", "folder for the measurements in the format of benchstat and the table"),
			noBuildFlag(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) (retErr error) {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			rows, err := bench.Find(cmd.StringSlice("row"))
			if err != nil {
				return err
			}
			targets := map[testbed.Flavor]*bench.Target{}
			for _, flavor := range testbed.Flavors {
				opt.Unmodified = flavor == testbed.Upstream
				tree, err := build.Tree(ctx, opt)
				if err == nil && !cmd.Bool("no-build") {
					_, err = build.InTree(ctx, tree, false)
				}
				if err != nil {
					return err
				}
				if targets[flavor], err = bench.NewTarget(ctx, flavor); err != nil {
					return err
				}
				targets[flavor].Tree, targets[flavor].Root = tree.Dir, opt.Root
				defer testbed.CloseLast(targets[flavor], &retErr)
			}
			results, err := bench.MeasureAll(ctx, rows, targets, cmd.Int("rounds"))
			if err != nil {
				return err
			}
			if err := bench.WriteTable(os.Stdout, results); err != nil {
				return err
			}
			if err := bench.WriteFiles(cmd.String("output"), results); err != nil {
				return err
			}
			if missed := slices.DeleteFunc(results, func(r *bench.Result) bool { return !r.Missed() }); len(missed) > 0 {
				return errors.Errorf("%d of %d rows are over their bar", len(missed), len(rows))
			}
			return nil
		},
	}
}

func clientsCommand() *cli.Command {
	return &cli.Command{
		Name:  "clients",
		Usage: "compare a client that orders evaluations itself with one that relies on the daemon",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 5, Validator: usage.AtLeast(1), Usage: "runs of each client"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return bench.CompareClients(ctx, os.Stdout, cmd.Int("rounds"))
		},
	}
}

func fuzzCommand() *cli.Command {
	return &cli.Command{
		Name:  "fuzz",
		Usage: "run the fuzz targets one after another",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "time", Value: 5 * time.Minute, Validator: usage.MoreThanZero, Usage: "how long each of them runs"},
			&cli.StringSliceFlag{Name: "target", Usage: "targets to run (default: all)"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			targets, err := fuzz.Targets(opt, cmd.StringSlice("target"))
			if err != nil {
				return err
			}
			t, err := build.Tree(ctx, opt)
			if err != nil {
				return err
			}
			return fuzz.RunAll(ctx, targets, t, cmd.Duration("time"))
		},
	}
}
