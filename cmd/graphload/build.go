package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/embed"
	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/release"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/graphload/graphload/internal/usage"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:  "build",
		Usage: "build static buildkitd and buildctl into bin",
		Flags: []cli.Flag{
			unmodifiedFlag(),
			&cli.BoolFlag{Name: "race", Usage: "build with the race detector"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			opt.Unmodified = cmd.Bool("unmodified")
			_, err = build.Daemon(ctx, opt, cmd.Bool("race"))
			return err
		},
	}
}

func buildxCommand() *cli.Command {
	return &cli.Command{
		Name:  "buildx",
		Usage: "build a static buildx into bin, which leaves the order of linked targets to the daemon",
		Description: "With a daemon that lists the capability gateway.solve.load, this buildx evaluates linked\n" +
			"targets in any order. With other daemons, it behaves as upstream's buildx of the same release.\n" +
			"To use it, install bin/buildx as ~/.docker/cli-plugins/docker-buildx.",
		CustomHelpTemplate: withoutRelease(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if releaseFlag(cmd) != "" {
				return errors.New("--release is one of BuildKit: buildx is built with the one that its go.mod requires")
			}
			root, err := upstream.Root()
			if err != nil {
				return err
			}
			return build.Buildx(ctx, root)
		},
	}
}

func engineCommand() *cli.Command {
	return &cli.Command{
		Name:  "engine",
		Usage: "build static dockerd and docker-proxy of the Docker engine into bin",
		Flags: []cli.Flag{
			unmodifiedFlag(),
			&cli.StringFlag{Name: "version", Value: engine.DefaultVersion, Usage: "release of the module " + engine.Module},
			&cli.BoolFlag{Name: "test", Usage: "build both, test chained targets on upstream's engine and on this one, and write the table of the engine"},
			&cli.IntFlag{Name: "runs", Value: 10, Validator: usage.AtLeast(1), Usage: "with --test: runs of each scenario with each buildx"},
			&cli.BoolFlag{Name: "conformance", Usage: "build both, run the engine's own tests of builds with both, and compare each test"},
			&cli.IntFlag{Name: "retries", Value: 3, Validator: usage.AtLeast(0), Usage: "with --conformance: how often tests that differ are run again"},
			&cli.StringFlag{Name: "run", Validator: usage.Expression, Usage: "with --test or --conformance: only tests that match, as with go test -run"},
			&cli.BoolFlag{Name: "no-build", Usage: "with --test or --conformance: use the binaries in bin as they are"},
		},
		CustomHelpTemplate: withoutRelease(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if releaseFlag(cmd) != "" {
				return errEngineRelease
			}
			root, err := upstream.Root()
			if err != nil {
				return err
			}
			version, test, conformance := cmd.String("version"), cmd.Bool("test"), cmd.Bool("conformance")
			if err := usage.CheckRelease(version); err != nil {
				return err
			}
			switch {
			case cmd.IsSet("runs") && !test:
				return errors.New("--runs needs --test")
			case cmd.IsSet("retries") && !conformance:
				return errors.New("--retries needs --conformance")
			case (cmd.IsSet("run") || cmd.IsSet("no-build")) && !test && !conformance:
				return errors.New("--run and --no-build need --test or --conformance")
			case (test || conformance) && version != engine.DefaultVersion:
				return errors.Errorf("the tests are for %s", engine.DefaultVersion)
			case (test || conformance) && cmd.Bool("unmodified"):
				return errors.New("--test and --conformance compare both engines: leave --unmodified out")
			case test && conformance:
				return errors.New("--test and --conformance exclude each other")
			case test:
				return testEngines(ctx, cmd, root)
			case conformance:
				return conformEngines(ctx, cmd, root)
			}
			return buildEngine(ctx, root, version, cmd.Bool("unmodified"))
		},
	}
}

var errEngineRelease = errors.New("the go.mod of the engine says which BuildKit it needs: leave --release out")

func buildEngine(ctx context.Context, root, version string, unmodified bool) error {
	out, err := engine.Binaries(ctx, root, version, unmodified)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", filepath.Join(out, "dockerd"), filepath.Join(out, "docker-proxy"))
	return nil
}

func installFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "prefix", Value: "/usr/local", Usage: "folder with bin, lib and share"},
		&cli.StringFlag{Name: "destdir", Usage: "put in front of the prefix, for packages"},
	}
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "build for this machine and install binaries, systemd units and the license",
		Flags: append(installFlags(), noBuildFlag()),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			destdir, prefix := cmd.String("destdir"), cmd.String("prefix")
			if err := release.CheckFolders(destdir, prefix); err != nil {
				return err
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			dir, err := build.Dir(opt, false)
			if err == nil && !cmd.Bool("no-build") {
				dir, err = build.Daemon(ctx, opt, false)
			}
			if err != nil {
				return err
			}
			return release.Install(opt.Root, dir, destdir, prefix)
		},
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "remove what install has installed; the state of the daemon stays",
		Flags: installFlags(),
		Action: func(_ context.Context, cmd *cli.Command) error {
			root, err := upstream.Root()
			if err != nil {
				return err
			}
			return release.Uninstall(root, cmd.String("destdir"), cmd.String("prefix"))
		},
	}
}

func embedCommand() *cli.Command {
	return &cli.Command{
		Name:      "embed",
		Usage:     "make a Go program that requires BuildKit use the assembled tree of the release that its go.mod names",
		ArgsUsage: "DIR",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "undo", Usage: "remove the lines that embed added to go.mod"},
		},
		CustomHelpTemplate: withoutRelease(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() != 1 {
				return errors.New("name one folder that has the go.mod of a program, as in graphload embed ../program")
			}
			if releaseFlag(cmd) != "" {
				return errors.New("the go.mod of the program says which release it needs: leave --release out")
			}
			dir := cmd.Args().First()
			if cmd.Bool("undo") {
				return embed.Revert(os.Stdout, dir)
			}
			root, err := upstream.Root()
			if err != nil {
				return err
			}
			_, err = embed.Embed(ctx, os.Stdout, root, dir)
			return err
		},
	}
}
