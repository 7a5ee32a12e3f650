package main

import (
	"context"
	"fmt"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/urfave/cli/v3"
)

func dockerCommand() *cli.Command {
	return &cli.Command{
		Name:  "docker",
		Usage: "run the images in a Docker engine of its own: bake chained targets, upgrade a builder in place, rootless, mTLS and systemd",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 10, Usage: "runs of each scenario with each buildx"},
			&cli.StringFlag{Name: "run", Value: "^(TestDocker.*|TestMutualTLS|TestSystemdUnits|TestSocketActivation)$", Usage: "tests to run"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := installContainerPackages(ctx); err != nil {
				return err
			}
			if err := prepareIntegration(ctx, cmd); err != nil {
				return err
			}
			progressf("fetching Debian's Docker engine, if it is not there")
			if err := testbed.FetchDocker(ctx); err != nil {
				return err
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			return goTest(ctx, opt.Root, "-timeout", "0", "-count", "1", "-v", "-run", cmd.String("run"), "./integration",
				"-docker", "-container-runs", fmt.Sprint(cmd.Int("runs")))
		},
	}
}

// unitPackages are what tests of systemd units and of the page of the build graph
// run.
var unitPackages = map[string]string{
	"chromium":                "chromium",
	"systemd":                 "systemd",
	"systemd-analyze":         "systemd",
	"systemd-socket-activate": "systemd",
}

// installContainerPackages installs what tests of images, units and the page
// run. The engine is not among it, it is unpacked and not installed.
func installContainerPackages(ctx context.Context) error {
	if err := installDistPackages(ctx); err != nil {
		return err
	}
	return installMissing(ctx, unitPackages)
}
