package main

import (
	"context"
	stderrors "errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func integrationCommand() *cli.Command {
	return &cli.Command{
		Name:  "integration",
		Usage: "run all end-to-end tests and write the table of clients",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Usage: "runs of each bake with each buildx on each daemon"},
			&cli.StringSliceFlag{Name: "buildx", Value: testbed.BuildxVersions(), Usage: "versions of buildx"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "only these scenarios, by name; the other rows of the table stay as they are"},
			&cli.IntFlag{Name: "graphs", Value: 300, Usage: "random graphs"},
			&cli.IntFlag{Name: "chains", Value: 200, Usage: "chains that are built at once"},
			&cli.DurationFlag{Name: "duration", Value: 5 * time.Minute, Usage: "how long many clients build random graphs"},
			&cli.BoolFlag{Name: "table-only", Usage: "only what is in the table, without the other tests"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: filepath.Join("docs", "compatibility.md"), Usage: "file for the table, next to which one with .json is written"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := installContainerPackages(ctx); err != nil {
				return err
			}
			if err := prepareIntegration(ctx, cmd); err != nil {
				return err
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			t := &table{version: opt.Version, date: time.Now(), runs: cmd.Int("runs"), versions: cmd.StringSlice("buildx"), scenarios: cmd.StringSlice("scenario")}
			failed := t.fill(ctx, opt, cmd.String("output"))
			if cmd.Bool("table-only") || len(t.scenarios) > 0 || ctx.Err() != nil {
				return failed
			}
			testsErr := goTest(ctx, opt.Root, "-timeout", "0", "-count", "1", "-v", "./integration/...",
				"-docker", "-credentials",
				"-graphs", fmt.Sprint(cmd.Int("graphs")), "-chains", fmt.Sprint(cmd.Int("chains")), "-duration", cmd.Duration("duration").String())
			return stderrors.Join(failed, testsErr)
		},
	}
}

func soakCommand() *cli.Command {
	return &cli.Command{
		Name:  "soak",
		Usage: "run random graphs for hours",
		Description: "10,000 graphs take about three hours of CPU time. The daemon syncs many small writes:\n" +
			"with TMPDIR on a tmpfs, as /dev/shm, it uses less than half of its own.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "graphs", Value: 10_000, Usage: "random graphs"},
			&cli.Uint64Flag{Name: "seed", Usage: "seed of the graphs, 0 for one of its own"},
			&cli.DurationFlag{Name: "duration", Value: 5 * time.Minute, Usage: "how long many clients build random graphs"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := prepareIntegration(ctx, cmd); err != nil {
				return err
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			return goTest(ctx, opt.Root, "-timeout", "0", "-count", "1", "-v", "-run", "^(TestRandomGraphs|TestRandomGraphsAhead|TestClients|TestChainsAtOnce|TestAheadChainsAtOnce)$", "./integration",
				"-chains", "200", "-graphs", fmt.Sprint(cmd.Int("graphs")), "-seed", fmt.Sprint(cmd.Uint64("seed")), "-duration", cmd.Duration("duration").String())
		},
	}
}

// prepareIntegration installs and builds what end-to-end tests run. Logs of
// tests that fail go to build/logs, unless there is a folder for them already.
func prepareIntegration(ctx context.Context, cmd *cli.Command) error {
	if err := installPackages(ctx); err != nil {
		return err
	}
	opt, err := options(cmd)
	if err != nil {
		return err
	}
	if os.Getenv(testbed.LogsEnv) == "" {
		if err := os.Setenv(testbed.LogsEnv, filepath.Join(opt.Root, "build", "logs")); err != nil {
			return errors.WithStack(err)
		}
	}
	if cmd.Bool("no-build") {
		return nil
	}
	for _, unmodified := range []bool{false, true} {
		opt.Unmodified = unmodified
		if _, err := buildBinaries(ctx, opt, false); err != nil {
			return err
		}
	}
	return buildBuildx(ctx, opt.Root)
}
