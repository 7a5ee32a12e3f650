package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/lint"
	"github.com/urfave/cli/v3"
)

func treeCommand() *cli.Command {
	return &cli.Command{
		Name:  "tree",
		Usage: "assemble the source tree in build/<version>, or build/<module>-<version>",
		Flags: []cli.Flag{moduleFlag(), unmodifiedFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			t, err := plan(ctx, cmd, true)
			if err != nil {
				return err
			}
			fmt.Println(t.Dir)
			return nil
		},
	}
}

func seamsCommand() *cli.Command {
	return &cli.Command{
		Name:  "seams",
		Usage: "list the seams with the places where they were found",
		Flags: []cli.Flag{moduleFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			t, err := plan(ctx, cmd, false)
			if err != nil {
				return err
			}
			diffs, err := t.Diff()
			if err != nil {
				return err
			}
			tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(tw, "SEAM\tPLACE\tDECLARATION\tOPERATION\tWHY")
			for _, m := range t.Matches {
				op, _ := m.Seam.Operation()
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", m.Seam.Name, m.Position(), m.Seam.In, op, m.Seam.Why)
			}
			if err := tw.Flush(); err != nil {
				return err
			}
			plus, minus := 0, 0
			for _, d := range diffs {
				if !d.New {
					plus, minus = plus+d.Plus, minus+d.Minus
				}
			}
			fmt.Printf("\n%s: %d seams in %d files, %d lines added or altered, %d removed or replaced\n", t.Release(), len(t.Matches), len(t.Changed), plus, minus)
			return nil
		},
	}
}

func lintCommand() *cli.Command {
	return &cli.Command{
		Name:  "lint",
		Usage: "check added files with the rules of upstream, and this repository with its own",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			t, err := plan(ctx, cmd, true)
			if err != nil {
				return err
			}
			buildx, err := build.BuildxTree(ctx, t.Root)
			if err != nil {
				return err
			}
			return lint.Run(ctx, t.Root, t, buildx)
		},
	}
}
