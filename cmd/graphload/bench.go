package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/graphload/graphload/internal/bench"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "compare the cost of lazy solves with upstream's daemon",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 15, Usage: "measurements of each row on each daemon, at least"},
			&cli.StringSliceFlag{Name: "row", Usage: "rows to measure, by a part of their name (default: all)"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "build/bench", Usage: "folder for the measurements in the format of benchstat and the table"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
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
				tree, err := writeTree(ctx, opt)
				if err != nil {
					return err
				}
				if !cmd.Bool("no-build") {
					if _, err := buildTree(ctx, opt, tree, false); err != nil {
						return err
					}
				}
				if targets[flavor], err = bench.NewTarget(ctx, flavor); err != nil {
					return err
				}
				targets[flavor].Tree, targets[flavor].Root = tree.Dir, opt.Root
				defer closeLast(targets[flavor], &retErr)
			}
			var results []*bench.Result
			for _, row := range rows {
				r, err := bench.Measure(ctx, row, targets, cmd.Int("rounds"))
				if err != nil {
					return err
				}
				progressf("%s: %.3f", row.Name, r.Ratio())
				results = append(results, r)
			}
			if err := bench.WriteTable(os.Stdout, results); err != nil {
				return err
			}
			if err := writeBench(cmd.String("output"), results); err != nil {
				return err
			}
			if missed := slices.DeleteFunc(results, func(r *bench.Result) bool { return !r.Missed() }); len(missed) > 0 {
				return errors.Errorf("%d of %d rows are over their bar", len(missed), len(rows))
			}
			return nil
		},
	}
}

// writeBench writes what was measured to a folder.
func writeBench(dir string, results []*bench.Result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	files := map[string]func(io.Writer, []*bench.Result) error{
		"bench.txt": bench.WriteBenchstat,
		"bench.md":  bench.WriteMarkdown,
	}
	for name, write := range files {
		var buf bytes.Buffer
		if err := write(&buf, results); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), buf.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// medianOf returns the upper median.
func medianOf(times []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)/2]
}
