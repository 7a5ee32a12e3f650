package main

import (
	"context"
	stderrors "errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// golangciLint is the version that BuildKit's own lint target uses.
const golangciLint = "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2"

func lintCommand() *cli.Command {
	return &cli.Command{
		Name:  "lint",
		Usage: "check added files with the rules of upstream, and this repository with its own",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			t, err := writeTree(ctx, opt)
			if err != nil {
				return err
			}
			bin, err := upstream.CacheDir("tools")
			if err != nil {
				return err
			}
			linter := filepath.Join(bin, "golangci-lint")
			if _, err := os.Stat(linter); err != nil {
				progressf("installing %s", golangciLint)
				install := exec.CommandContext(ctx, "go", "install", golangciLint)
				install.Dir = os.TempDir()
				install.Env = append(os.Environ(), "GOBIN="+bin)
				install.Stdout, install.Stderr = os.Stderr, os.Stderr
				if err := install.Run(); err != nil {
					return errors.Wrap(err, "failed to install golangci-lint")
				}
			}
			buildx, err := writeBuildx(ctx, t.Root)
			if err != nil {
				return err
			}
			return stderrors.Join(
				lintTree(ctx, linter, t, slices.Concat([]string{"./client", "./frontend/gateway/..."}, treePackages)),
				lintTree(ctx, linter, buildx, buildx.Packages()),
				lint(ctx, linter, t.Root, "./..."),
			)
		},
	}
}

// lintTree checks packages of a tree with the rules of upstream. Its own files are
// upstream's business: what is reported is what differs from a tree without any
// change.
func lintTree(ctx context.Context, linter string, t *assemble.Tree, pkgs []string) error {
	patch := t.BuildDir() + ".diff"
	dt, err := t.Patch()
	if err != nil {
		return err
	}
	if err := os.WriteFile(patch, dt, 0o644); err != nil {
		return errors.WithStack(err)
	}
	return lint(ctx, linter, t.Dir, slices.Concat([]string{"--modules-download-mode=mod", "--new-from-patch", patch}, pkgs)...)
}

func lint(ctx context.Context, linter, dir string, args ...string) error {
	progressf("golangci-lint in %s", dir)
	cmd := exec.CommandContext(ctx, linter, append([]string{"run"}, args...)...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Wrapf(cmd.Run(), "golangci-lint in %s", dir)
}
