package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/urfave/cli/v3"
)

func seamsCommand() *cli.Command {
	return &cli.Command{
		Name:  "seams",
		Usage: "list the seams with the places where they were found",
		Flags: []cli.Flag{moduleFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			t, err := assemble.Plan(ctx, opt)
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
				fmt.Fprintf(tw, "%s\t%s/%s:%d\t%s\t%s\t%s\n", m.Seam.Name, m.Seam.Package, m.File, m.Line, m.Seam.In, op, m.Seam.Why)
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
			fmt.Printf("\n%s: %d seams in %d files, %d lines added or altered, %d removed or replaced\n", opt.Release(), len(t.Matches), len(t.Changed), plus, minus)
			return nil
		},
	}
}
