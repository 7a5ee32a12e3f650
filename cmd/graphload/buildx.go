package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// buildxModule is the name of buildx in the seam list.
const buildxModule = "buildx"

func buildxCommand() *cli.Command {
	return &cli.Command{
		Name:  "buildx",
		Usage: "build a static buildx that does not order linked targets itself into bin",
		Description: "It relies on daemons that list the capability gateway.solve.load. With others it is the\n" +
			"buildx of its release. To use it, install bin/buildx as ~/.docker/cli-plugins/docker-buildx.",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if releaseFlag(cmd) != "" {
				return errors.New("--release is one of BuildKit: buildx is built with the one that its go.mod requires")
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			return buildBuildx(ctx, opt.Root)
		},
	}
}

// writeBuildx assembles the tree of buildx.
func writeBuildx(ctx context.Context, root string) (*assemble.Tree, error) {
	opt, err := assemble.Default(root, buildxModule)
	if err != nil {
		return nil, err
	}
	return writeTree(ctx, opt)
}

// buildBuildx assembles the tree of buildx and builds it.
func buildBuildx(ctx context.Context, root string) error {
	t, err := writeBuildx(ctx, root)
	if err != nil {
		return err
	}
	ldflags, err := versionFlags(ctx, t.Options, t.Upstream.Module)
	if err != nil {
		return err
	}
	dir := filepath.Join(root, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	progressf("building buildx %s", version(t.Options))
	return gomod.Build(ctx, t.Dir, "./cmd/buildx", filepath.Join(dir, "buildx"), ldflags, []string{"CGO_ENABLED=0"})
}
