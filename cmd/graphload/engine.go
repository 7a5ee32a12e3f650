package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func engineCommand() *cli.Command {
	return &cli.Command{
		Name:  "engine",
		Usage: "build static dockerd and docker-proxy of the Docker engine into bin",
		Flags: []cli.Flag{
			unmodifiedFlag(),
			&cli.StringFlag{Name: "version", Value: engine.DefaultVersion, Usage: "release of the module " + engine.Module},
			&cli.BoolFlag{Name: "test", Usage: "build both, and bake chained targets on upstream's engine and on this one"},
			&cli.IntFlag{Name: "runs", Value: 10, Usage: "with --test: runs of each scenario with each buildx"},
			&cli.BoolFlag{Name: "no-build", Usage: "with --test: use the binaries in bin as they are"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if releaseFlag(cmd) != "" {
				return errors.New("the go.mod of the engine says which BuildKit it needs: leave --release out")
			}
			root, err := upstream.Root()
			if err != nil {
				return err
			}
			version, test := cmd.String("version"), cmd.Bool("test")
			switch {
			case test && version != engine.DefaultVersion:
				return errors.Errorf("the tests are for %s", engine.DefaultVersion)
			case test && cmd.Bool("unmodified"):
				return errors.New("--test compares both engines: leave --unmodified out")
			case !test:
				return buildEngine(ctx, root, version, cmd.Bool("unmodified"))
			}
			if err := installPackages(ctx); err != nil {
				return err
			}
			if !cmd.Bool("no-build") {
				for _, unmodified := range []bool{true, false} {
					if err := buildEngine(ctx, root, version, unmodified); err != nil {
						return err
					}
				}
			}
			return goTest(ctx, root, "-timeout", "0", "-count", "1", "-v", "-run", "^TestEngine", "./integration",
				"-engine", "-container-runs", fmt.Sprint(cmd.Int("runs")))
		},
	}
}

// buildEngine builds the binaries of the engine: into bin for the default release, into
// bin/moby-<version> for others, and into upstream below it for the unmodified one.
func buildEngine(ctx context.Context, root, version string, unmodified bool) error {
	start := time.Now()
	prepare, out := engine.Prepare, filepath.Join(root, "bin")
	if version != engine.DefaultVersion {
		out = filepath.Join(out, "moby-"+version)
	}
	if unmodified {
		prepare, out = engine.Unmodified, filepath.Join(out, "upstream")
	}
	src, err := prepare(ctx, root, version)
	if err != nil {
		return err
	}
	rev, err := revision(ctx, root)
	if err != nil {
		return err
	}
	progressf("building dockerd and docker-proxy %s with BuildKit %s in %s", src.DockerVersion(), src.BuildKit, src.Dir)
	if err := src.Build(ctx, out, rev); err != nil {
		return err
	}
	progressf("built in %s", time.Since(start).Round(time.Second))
	fmt.Fprintf(os.Stdout, "%s\n%s\n", filepath.Join(out, "dockerd"), filepath.Join(out, "docker-proxy"))
	return nil
}
