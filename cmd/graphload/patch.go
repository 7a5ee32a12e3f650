package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/series"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func patchCommand() *cli.Command {
	return &cli.Command{
		Name:      "patch",
		Usage:     "write the change as a diff that git apply takes on an upstream checkout, or as a series for git am",
		ArgsUsage: "[DIR]",
		Flags: []cli.Flag{
			moduleFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "file to write (default: standard output)"},
			&cli.BoolFlag{Name: "series", Usage: "write a series of commits into DIR (default: build/series, or build/<module>-series), instead of one diff"},
			&cli.BoolFlag{Name: "check", Usage: "with --series: build every commit and test its packages"},
			&cli.BoolFlag{Name: "all-releases", Usage: "with --series: one series for each release of the seam list, in a folder of its own"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			serial, dir, out, all := cmd.Bool("series"), cmd.Args().First(), cmd.String("output"), cmd.Bool("all-releases")
			switch {
			case serial && out != "":
				return errors.New("--series and --output exclude each other: name the folder behind the flags")
			case !serial && (cmd.Bool("check") || all || dir != ""):
				return errors.New("--check, --all-releases and a folder are for --series")
			case cmd.Args().Len() > 1:
				return errors.Errorf("one folder is enough, not %q", cmd.Args().Slice())
			case all && releaseFlag(cmd) != "":
				return errors.New("--all-releases and --release exclude each other")
			}
			if dir == "" {
				dir = filepath.Join(opt.Root, "build", strings.TrimPrefix(opt.Module+"-series", "-"))
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

func patchSeries(ctx context.Context, opt assemble.Options, dir string, check bool) error {
	t, err := assemble.Plan(ctx, opt)
	if err != nil {
		return err
	}
	author, date, err := committer(ctx, t.Root)
	if err != nil {
		return err
	}
	patches, err := series.New(t, author, date)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	// what an earlier series left would be applied with this one
	stale, err := filepath.Glob(filepath.Join(dir, "[0-9][0-9][0-9][0-9]-*.patch"))
	if err != nil {
		return errors.WithStack(err)
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil {
			return errors.WithStack(err)
		}
	}
	for _, p := range patches {
		path := filepath.Join(dir, p.Name)
		if err := files.Write(path, p.Mail, 0o644); err != nil {
			return err
		}
		fmt.Println(path)
	}
	if check {
		return checkSeries(ctx, t, patches)
	}
	return nil
}

// committer returns who signs the series off, and when the change was made.
func committer(ctx context.Context, root string) (series.Person, time.Time, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = root
		dt, err := cmd.Output()
		return strings.TrimSpace(string(dt)), errors.Wrapf(err, "git %s", strings.Join(args, " "))
	}
	var p series.Person
	var err error
	if p.Name, err = git("config", "user.name"); err == nil {
		p.Email, err = git("config", "user.email")
	}
	if err != nil || p.Name == "" || p.Email == "" {
		return p, time.Time{}, errors.New("the series is signed off by whom git config says: set user.name and user.email")
	}
	stamp, err := git("log", "-1", "--format=%aI")
	if err != nil {
		return p, time.Time{}, err
	}
	date, err := time.Parse(time.RFC3339, stamp)
	return p, date, errors.WithStack(err)
}

// checkSeries commits one patch after the other, and builds and tests each. The
// repository stays at one path, so that the build cache serves a second check.
func checkSeries(ctx context.Context, t *assemble.Tree, patches []series.Patch) error {
	dir := t.BuildDir() + "-series"
	if err := os.RemoveAll(dir); err != nil {
		return errors.WithStack(err)
	}
	repo, err := series.Import(ctx, dir, t.Upstream.Dir, t.Release())
	if err != nil {
		return err
	}
	for i, p := range patches {
		if err := repo.Apply(ctx, p); err != nil {
			return err
		}
		progress.Printf("%s, commit %d of %d: %s", t.Release(), i+1, len(patches), p.Title)
		// client has the tests for the integration harness of upstream: without
		// daemon and images they skip themselves with -short
		for _, args := range [][]string{
			{"build", "-buildvcs=false", "./..."},
			append([]string{"test", "-buildvcs=false", "-short"}, p.Packages...),
		} {
			progress.Printf("go %s", strings.Join(args, " "))
			cmd := gomod.Command(ctx, dir, args...)
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			if err := cmd.Run(); err != nil {
				return errors.Wrapf(err, "commit %q: go %s", p.Title, args[0])
			}
		}
		if status, err := repo.Git(ctx, nil, "status", "--porcelain"); err != nil || status != "" {
			return errors.Errorf("commit %q leaves changes behind: %s %v", p.Title, status, err)
		}
	}
	progress.Printf("%s: all %d commits build and pass the tests of their packages", t.Release(), len(patches))
	return nil
}
