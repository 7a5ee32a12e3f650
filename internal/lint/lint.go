// Package lint checks added files with the rules of upstream, and the repository with
// its own.
package lint

import (
	"context"
	stderrors "errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// linter is the version of golangci-lint that BuildKit's own lint target uses.
var linter = gomod.Tool{
	Module: gomod.Module{Path: "github.com/golangci/golangci-lint/v2", Version: "v2.12.2", Sum: "h1:7+d1uY0bq1MU2UV3R5pW5Q7QWdcoq4naMRXM+gsJKrs="},
	Pkg:    "./cmd/golangci-lint",
}

// Run checks trees, and the repository at root.
func Run(ctx context.Context, root string, trees ...*assemble.Tree) error {
	bin, err := linter.Install(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, t := range trees {
		failed = append(failed, tree(ctx, bin, t))
	}
	for _, dir := range []string{root, filepath.Join(root, "examples", "kubernetes")} {
		failed = append(failed, lint(ctx, bin, dir, "./..."))
	}
	return stderrors.Join(failed...)
}

// tree checks the changed packages of a tree with the rules of upstream. It reports only
// issues in lines that the change adds.
func tree(ctx context.Context, bin string, t *assemble.Tree) error {
	patch := t.BuildDir() + ".diff"
	dt, err := t.Patch()
	if err != nil {
		return err
	}
	if err := files.Write(patch, dt, 0o644); err != nil {
		return err
	}
	return lint(ctx, bin, t.Dir, slices.Concat([]string{"--modules-download-mode=mod", "--new-from-patch", patch}, t.Packages())...)
}

func lint(ctx context.Context, bin, dir string, args ...string) error {
	progress.Printf("golangci-lint in %s", dir)
	cmd := exec.CommandContext(ctx, bin, append([]string{"run"}, args...)...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Wrapf(cmd.Run(), "golangci-lint in %s", dir)
}
