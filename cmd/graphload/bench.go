package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/graphload/graphload/internal/bench"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "compare the cost of lazy solves with upstream's daemon",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 15, Usage: "measurements of each row on each daemon"},
			&cli.StringSliceFlag{Name: "row", Usage: "rows to measure, by a part of their name (default: all)"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "file for the measurements in the format of benchstat"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			rows, err := bench.Find(cmd.StringSlice("row"))
			if err != nil {
				return err
			}
			clients := map[testbed.Flavor]*client.Client{}
			for _, flavor := range testbed.Flavors {
				if !cmd.Bool("no-build") {
					opt.Pristine = flavor == testbed.Upstream
					if _, err := buildBinaries(ctx, opt, false); err != nil {
						return err
					}
				}
				d, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: flavor, Quiet: true})
				if err != nil {
					return err
				}
				defer d.Close()
				if clients[flavor], err = client.New(ctx, d.Addr); err != nil {
					return errors.WithStack(err)
				}
				defer clients[flavor].Close()
			}
			results := map[string]map[testbed.Flavor][]time.Duration{}
			for _, row := range rows {
				if results[row.Name], err = measure(ctx, row, clients, cmd.Int("rounds")); err != nil {
					return errors.Wrap(err, row.Name)
				}
			}
			return reportBench(rows, results, cmd.String("output"))
		},
	}
}

// measure runs a row on both daemons in turns. The first turn warms up.
func measure(ctx context.Context, row bench.Row, clients map[testbed.Flavor]*client.Client, rounds int) (map[testbed.Flavor][]time.Duration, error) {
	out := map[testbed.Flavor][]time.Duration{}
	for i := range rounds + 1 {
		for _, flavor := range testbed.Flavors {
			d, err := row.Run(ctx, clients[flavor])
			if err != nil {
				return nil, errors.Wrapf(err, "%s daemon", flavor)
			}
			if i > 0 {
				out[flavor] = append(out[flavor], d)
			}
		}
	}
	progressf("%s: %.3f", row.Name, ratio(out))
	return out, nil
}

func ratio(times map[testbed.Flavor][]time.Duration) float64 {
	return float64(medianOf(times[testbed.Graphload])) / float64(medianOf(times[testbed.Upstream]))
}

func medianOf(times []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)/2]
}

// spread is the difference between the quartiles, relative to the median.
func spread(times []time.Duration) float64 {
	s := slices.Sorted(slices.Values(times))
	return float64(s[len(s)*3/4]-s[len(s)/4]) / float64(s[len(s)/2])
}

func reportBench(rows []bench.Row, results map[string]map[testbed.Flavor][]time.Duration, output string) error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "WORK\tUPSTREAM\t±\tGRAPHLOAD\t±\tRATIO\tBAR\t")
	stat := ""
	for _, row := range rows {
		r := results[row.Name]
		mark := ""
		if q := ratio(r); row.Bar > 0 && q > row.Bar {
			mark = "missed"
		}
		up, gl := r[testbed.Upstream], r[testbed.Graphload]
		fmt.Fprintf(tw, "%s\t%s\t%.0f%%\t%s\t%.0f%%\t%.2f\t%.2f\t%s\n", row.Name,
			medianOf(up).Round(10*time.Microsecond), 100*spread(up), medianOf(gl).Round(10*time.Microsecond), 100*spread(gl), ratio(r), row.Bar, mark)
		for _, flavor := range testbed.Flavors {
			for _, d := range r[flavor] {
				stat += fmt.Sprintf("Benchmark%s/daemon=%s 1 %d ns/op\n", row.ID(), flavor, d)
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return errors.WithStack(err)
	}
	if output == "" {
		return nil
	}
	return writeFile(output, []byte(stat))
}
