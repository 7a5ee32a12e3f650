package main

import (
	"context"
	"fmt"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/urfave/cli/v3"
)

func treeCommand() *cli.Command {
	return &cli.Command{
		Name:  "tree",
		Usage: "assemble the source tree in build/<version>, or build/<module>-<version>",
		Flags: []cli.Flag{moduleFlag(), unmodifiedFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			opt.Unmodified = cmd.Bool("unmodified")
			t, err := writeTree(ctx, opt)
			if err != nil {
				return err
			}
			fmt.Println(t.Dir)
			return nil
		},
	}
}

func unmodifiedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "unmodified", Usage: "upstream without any change"}
}

func writeTree(ctx context.Context, opt assemble.Options) (*assemble.Tree, error) {
	t, err := assemble.Plan(ctx, opt)
	if err != nil {
		return nil, err
	}
	progressf("assembling %s: %d seams, %d added files", opt.Release(), len(t.Matches), len(t.Added))
	return t, t.Write()
}
