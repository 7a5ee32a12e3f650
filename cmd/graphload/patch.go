package main

import (
	"context"
	"os"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func patchCommand() *cli.Command {
	return &cli.Command{
		Name:  "patch",
		Usage: "write the change as a diff that git apply takes on an upstream checkout",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "file to write (default: standard output)"},
		},
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
			var sb strings.Builder
			for _, d := range diffs {
				sb.WriteString(d.Unified)
			}
			out := cmd.String("output")
			if out == "" {
				_, err := os.Stdout.WriteString(sb.String())
				return errors.WithStack(err)
			}
			if err := os.WriteFile(out+".tmp", []byte(sb.String()), 0o644); err != nil {
				return errors.WithStack(err)
			}
			return errors.WithStack(os.Rename(out+".tmp", out))
		},
	}
}
