package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/fuzz"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func fuzzCommand() *cli.Command {
	return &cli.Command{
		Name:  "fuzz",
		Usage: "run the fuzz targets one after another",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "time", Value: 5 * time.Minute, Usage: "how long each of them runs"},
			&cli.StringSliceFlag{Name: "target", Usage: "targets to run (default: all)"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			t, err := writeTree(ctx, opt)
			if err != nil {
				return err
			}
			only := cmd.StringSlice("target")
			var failed []string
			for _, target := range fuzz.Targets {
				if len(only) > 0 && !slices.Contains(only, target.Name) {
					continue
				}
				progressf("%s in %s for %s", target.Name, target.Pkg, cmd.Duration("time"))
				if err := fuzz.Run(ctx, target, opt.Root, t.Dir, cmd.Duration("time")); err != nil {
					if ctx.Err() != nil {
						return errors.WithStack(context.Cause(ctx))
					}
					failed = append(failed, err.Error())
				}
			}
			if len(failed) > 0 {
				return errors.Errorf("fuzzing: %s", strings.Join(failed, ", "))
			}
			return nil
		},
	}
}
