package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/audit"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/release"
	"github.com/graphload/graphload/internal/upgrade"
	"github.com/graphload/graphload/internal/usage"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func distCommand() *cli.Command {
	return &cli.Command{
		Name:  "dist",
		Usage: "write archives and images for linux/amd64 and linux/arm64, with bills of materials and checksums",
		Flags: []cli.Flag{
			outputFlag("dist", "folder to write to; an earlier release in it is removed"),
			&cli.BoolFlag{Name: "no-image", Usage: "without images: no daemon is started"},
			&cli.BoolFlag{Name: "no-engine", Usage: "without the Docker engine"},
			&cli.StringFlag{Name: "debian-snapshot", Validator: usage.Snapshot, Usage: "state of Debian's archives for the images, as 20261123T000000Z (default: the current one)"},
			&cli.BoolFlag{Name: "check", Usage: "do it again in a second folder, with an empty build cache, and compare"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			if err := apt.Install(ctx, apt.Tests, apt.Compilers); err != nil {
				return err
			}
			r, err := release.New(ctx, opt, cmd.String("output"), cmd.String("debian-snapshot"))
			if err != nil {
				return err
			}
			parts := release.Parts{Images: !cmd.Bool("no-image"), Engine: !cmd.Bool("no-engine")}
			if err := r.Write(ctx, parts); err != nil || !cmd.Bool("check") {
				return err
			}
			return r.Check(ctx, parts)
		},
	}
}

// Exit codes of graphload audit; any other failure is 1.
const (
	exitFindings   = 3
	exitNoDatabase = 4
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name:  "audit",
		Usage: "look for known vulnerabilities in the binaries that are shipped",
		Description: fmt.Sprintf("The exit code is %d when there are findings without a verdict in packaging/verdicts.yaml,\n"+
			"and %d when the database cannot be reached, in which case nothing was checked.", exitFindings, exitNoDatabase),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "db", Value: audit.DefaultDB, Usage: "database: a module with a version, or a URL, file:///dir for one in a folder"},
			&cli.StringSliceFlag{Name: "binary", Usage: "binaries (default: those of graphload dist and graphload build)"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			bins := cmd.StringSlice("binary")
			for _, path := range bins {
				if _, err := os.Stat(path); err != nil {
					return errors.Errorf("no binary %s", path)
				}
			}
			verdicts, err := audit.LoadVerdicts(filepath.Join(opt.Root, "packaging", "verdicts.yaml"))
			if err != nil {
				return err
			}
			if len(bins) == 0 {
				if bins, err = release.Shipped(opt.Root); err != nil {
					return err
				}
			}
			findings, err := audit.Binaries(ctx, cmd.String("db"), bins)
			if errors.Is(err, audit.ErrNoDatabase) {
				return cli.Exit(fmt.Sprintf("graphload: audit: %s: %v", cmd.String("db"), err), exitNoDatabase)
			}
			if err != nil {
				return err
			}
			open := verdicts.Judge(findings)
			if err := audit.Report(os.Stdout, opt.Root, findings, len(bins)); err != nil {
				return err
			}
			if open > 0 {
				return cli.Exit(fmt.Sprintf("graphload: audit: %d findings without a verdict", open), exitFindings)
			}
			return nil
		},
	}
}

func releasesCommand() *cli.Command {
	return &cli.Command{
		Name:      "releases",
		Usage:     "assemble, vet, build and test releases of the seam list, all of them by default",
		ArgsUsage: "[vX.Y.Z...]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-e2e", Usage: "without the end-to-end tests"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			versions, err := opt.Releases()
			if err != nil {
				return err
			}
			only := cmd.Args().Slice()
			if version := releaseFlag(cmd); version != "" && len(only) == 0 {
				only = []string{version}
			}
			for _, version := range only {
				opt.Version = version
				if err := opt.Listed(); err != nil {
					return err
				}
			}
			if len(only) > 0 {
				versions = only
			}
			e2e := !cmd.Bool("no-e2e")
			if e2e {
				if err := apt.Install(ctx, apt.Tests); err != nil {
					return err
				}
			}
			var trials []*upgrade.Trial
			for _, version := range versions {
				opt.Version = version
				tr := upgrade.Try(ctx, opt, e2e)
				if ctx.Err() != nil {
					return errors.WithStack(context.Cause(ctx))
				}
				if tr.Err != nil {
					progress.Printf("%s: %s failed: %v", version, tr.Stage, tr.Err)
				}
				trials = append(trials, tr)
			}
			return upgrade.Report(os.Stdout, trials)
		},
	}
}

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:      "upgrade",
		Usage:     "look for the seams in a release of BuildKit, test it, and list what needs your attention",
		ArgsUsage: "vX.Y.Z",
		Description: "If all seams are found and all tests pass, the release is added to seams.yaml and is\n" +
			"supported from then on.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "seams-only", Usage: "only look for the seams: build and test nothing"},
			&cli.BoolFlag{Name: "no-e2e", Usage: "without the end-to-end tests"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() != 1 {
				return errors.New("name one release, as in graphload upgrade v0.34.2")
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			u := upgrade.Options{Options: opt, From: opt.Version, SeamsOnly: cmd.Bool("seams-only"), E2E: !cmd.Bool("no-e2e")}
			u.Version = cmd.Args().First()
			if err := usage.CheckRelease(u.Version); err != nil {
				return err
			}
			return upgrade.Run(ctx, os.Stdout, u)
		},
	}
}
