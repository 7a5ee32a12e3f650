package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/series"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func patchCommand() *cli.Command {
	return &cli.Command{
		Name:      "patch",
		Usage:     "write the change as a diff that git apply takes on an upstream checkout, or as a series for git am",
		ArgsUsage: "[FOLDER]",
		Flags: []cli.Flag{
			moduleFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "file to write (default: standard output)"},
			&cli.BoolFlag{Name: "series", Usage: "write a series of commits into FOLDER (default: build/series, or build/<module>-series), instead of one diff; an earlier series in it is replaced"},
			&cli.StringFlag{Name: "onto", Usage: "with --series: for the commit that is checked out in `DIR`, a git checkout of the main branch, which stays as it is; without the commits that are only for releases"},
			&cli.BoolFlag{Name: "check", Usage: "with --series: build every commit and test its packages"},
			&cli.BoolFlag{Name: "all-releases", Usage: "with --series: one series for each release of the seam list, each in a separate folder"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			serial, dir, out, all := cmd.Bool("series"), cmd.Args().First(), cmd.String("output"), cmd.Bool("all-releases")
			onto := cmd.String("onto")
			switch {
			case serial && out != "":
				return errors.New("--series and --output exclude each other: name the folder behind the flags")
			case !serial && (cmd.Bool("check") || all || onto != "" || dir != ""):
				return errors.New("--onto, --check, --all-releases and a folder need --series")
			case cmd.Args().Len() > 1:
				return errors.Errorf("one folder is enough, not %q", cmd.Args().Slice())
			case all && releaseFlag(cmd) != "":
				return errors.New("--all-releases and --release exclude each other")
			case onto != "" && (all || releaseFlag(cmd) != ""):
				return errors.New("--onto takes what is checked out, and neither --all-releases nor --release")
			}
			if dir == "" {
				dir = filepath.Join(opt.Root, "build", strings.TrimPrefix(opt.Module+"-series", "-"))
			}
			if onto != "" {
				if dir, err = filepath.Abs(dir); err != nil {
					return errors.WithStack(err)
				}
				return patchOnto(ctx, opt, onto, dir, cmd.Bool("check"))
			}
			if all {
				versions, err := opt.Releases()
				if err != nil {
					return err
				}
				for _, version := range versions {
					opt.Version = version
					if err := patchSeries(ctx, opt, filepath.Join(dir, version), cmd.Bool("check")); err != nil {
						return errors.Wrap(err, opt.Release())
					}
				}
				return nil
			}
			if serial {
				return patchSeries(ctx, opt, dir, cmd.Bool("check"))
			}
			t, err := assemble.Plan(ctx, opt)
			if err != nil {
				return err
			}
			dt, err := t.Patch()
			if err != nil {
				return err
			}
			if out == "" {
				_, err := os.Stdout.Write(dt)
				return errors.WithStack(err)
			}
			return files.Write(out, dt, 0o644)
		},
	}
}

// patchSeries writes the series for a release of the seam list.
func patchSeries(ctx context.Context, opt assemble.Options, dir string, check bool) error {
	if _, err := series.Earlier(dir); err != nil {
		return err
	}
	t, err := assemble.Plan(ctx, opt)
	if err != nil {
		return err
	}
	return writeSeries(ctx, t, dir, check, false)
}

// patchOnto writes the series for the commit that is checked out in checkout.
func patchOnto(ctx context.Context, opt assemble.Options, checkout, dir string, check bool) error {
	if _, err := series.Earlier(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "graphload-checkout-")
	if err != nil {
		return errors.WithStack(err)
	}
	defer os.RemoveAll(tmp)
	t, err := series.PlanOnto(ctx, opt, checkout, tmp)
	if err != nil {
		return err
	}
	if err := writeSeries(ctx, t, dir, check, true); err != nil {
		return err
	}
	progress.Printf("to apply the series: git -C %s am %s", checkout, filepath.Join(dir, "*.patch"))
	return nil
}

func writeSeries(ctx context.Context, t *assemble.Tree, dir string, check, upstream bool) error {
	author, date, err := series.Committer(ctx, t.Root)
	if err != nil {
		return err
	}
	patches, err := series.New(ctx, t, series.Options{Author: author, Date: date, Upstream: upstream})
	if err != nil {
		return err
	}
	paths, err := series.Write(dir, patches)
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(paths, "\n"))
	if check {
		return series.Check(ctx, t, patches)
	}
	return nil
}
