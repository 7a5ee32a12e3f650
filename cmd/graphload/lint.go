package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

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
			// upstream's own files are upstream's business: report what differs
			// from a tree without any change
			patch := filepath.Join(t.Root, "build", t.Version+".diff")
			dt, err := t.Patch()
			if err != nil {
				return err
			}
			if err := os.WriteFile(patch, dt, 0o644); err != nil {
				return errors.WithStack(err)
			}
			var failed error
			for dir, args := range map[string][]string{
				t.Dir:  slices.Concat([]string{"run", "--modules-download-mode=mod", "--new-from-patch", patch, "./client", "./frontend/gateway/..."}, treePackages),
				t.Root: {"run", "./..."},
			} {
				progressf("golangci-lint in %s", dir)
				run := exec.CommandContext(ctx, linter, args...)
				run.Dir = dir
				run.Stdout, run.Stderr = os.Stdout, os.Stderr
				if err := run.Run(); err != nil {
					failed = errors.Wrapf(err, "golangci-lint in %s", dir)
				}
			}
			return failed
		},
	}
}
