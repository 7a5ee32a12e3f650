package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/integration/testbed"
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
			&cli.IntFlag{Name: "graphs", Value: 300, Usage: "random graphs"},
			&cli.IntFlag{Name: "chains", Value: 200, Usage: "chains that are built at once"},
			&cli.DurationFlag{Name: "duration", Value: time.Minute, Usage: "how long many clients build random graphs"},
			&cli.BoolFlag{Name: "table-only", Usage: "only bake, without the tests"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: filepath.Join("docs", "compatibility.md"), Usage: "file for the table, next to which one with .json is written"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := prepareIntegration(ctx, cmd); err != nil {
				return err
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			d := &demo{runs: cmd.Int("runs"), loops: testbed.Matrix, versions: cmd.StringSlice("buildx"), flavors: testbed.Flavors, cells: map[cell]*figures{}}
			if err := d.run(ctx); err != nil {
				return err
			}
			if err := d.writeTable(cmd.String("output"), opt.Version, time.Now()); err != nil {
				return err
			}
			failed := d.report()
			if cmd.Bool("table-only") {
				return failed
			}
			if err := goTest(ctx, opt.Root, "-timeout", "0", "-count", "1", "-v", "./integration/...",
				"-graphs", fmt.Sprint(cmd.Int("graphs")), "-chains", fmt.Sprint(cmd.Int("chains")), "-duration", cmd.Duration("duration").String()); err != nil {
				return err
			}
			return failed
		},
	}
}

func soakCommand() *cli.Command {
	return &cli.Command{
		Name:  "soak",
		Usage: "run random graphs for hours",
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
			return goTest(ctx, opt.Root, "-timeout", "0", "-count", "1", "-v", "-run", "^(TestRandomGraphs|TestClients)$", "./integration",
				"-graphs", fmt.Sprint(cmd.Int("graphs")), "-seed", fmt.Sprint(cmd.Uint64("seed")), "-duration", cmd.Duration("duration").String())
		},
	}
}

// prepareIntegration installs and builds what end-to-end tests run.
func prepareIntegration(ctx context.Context, cmd *cli.Command) error {
	if err := installPackages(ctx); err != nil {
		return err
	}
	if cmd.Bool("no-build") {
		return nil
	}
	opt, err := options(cmd)
	if err != nil {
		return err
	}
	for _, pristine := range []bool{false, true} {
		opt.Pristine = pristine
		if _, err := buildBinaries(ctx, opt, false); err != nil {
			return err
		}
	}
	return nil
}

// tableRow is a line of the table as JSON.
type tableRow struct {
	Scenario string                 `json:"scenario"`
	Client   string                 `json:"client"`
	Runs     int                    `json:"runs"`
	Passed   map[testbed.Flavor]int `json:"passed"`
}

// writeTable writes the table as Markdown and as JSON.
func (d *demo) writeTable(path, version string, date time.Time) error {
	var rows []tableRow
	var sb strings.Builder
	fmt.Fprintf(&sb, "# Compatibility\n\nUnmodified clients on upstream's BuildKit %s and on this one, %d runs each, passes/runs.\n", version, d.runs)
	fmt.Fprintf(&sb, "Written by `graphload integration` on %s. Both daemons took turns.\n\n", date.Format(time.DateOnly))
	fmt.Fprintf(&sb, "| scenario | client | upstream %s | graphload |\n|---|---|---|---|\n", version)
	for _, loop := range d.loops {
		for _, v := range d.versions {
			row := tableRow{Scenario: loop.About, Client: "buildx " + v, Runs: d.runs, Passed: map[testbed.Flavor]int{}}
			for _, flavor := range d.flavors {
				row.Passed[flavor] = d.cells[cell{loop.Name, v, flavor}].passed
			}
			rows = append(rows, row)
			fmt.Fprintf(&sb, "| %s | %s | %d/%d | %d/%d |\n", row.Scenario, row.Client, row.Passed[testbed.Upstream], d.runs, row.Passed[testbed.Graphload], d.runs)
		}
	}
	dt, err := json.MarshalIndent(map[string]any{"date": date.Format(time.DateOnly), "upstream": version, "rows": rows}, "", "  ")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := os.WriteFile(path, []byte(sb.String()), 0o644); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.WriteFile(strings.TrimSuffix(path, filepath.Ext(path))+".json", append(dt, '\n'), 0o644))
}
