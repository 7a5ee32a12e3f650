// Package fuzz lists the fuzz targets of the repository and runs them.
package fuzz

import (
	"context"
	stderrors "errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/gotest"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// Target is a fuzz target.
type Target struct {
	Name string
	Tree bool   // in the assembled tree, not in the repository
	Pkg  string // relative to the tree or the repository
}

// Targets returns the fuzz targets with the given names, or all if names is empty, in
// added files and in the packages of the repository.
func Targets(opt assemble.Options, names []string) (targets []Target, _ error) {
	add := func(file, pkg string, tree bool) error {
		found, err := gotest.Functions(file, "Fuzz")
		for _, name := range found {
			targets = append(targets, Target{Name: name, Tree: tree, Pkg: "./" + pkg})
		}
		return err
	}
	added, err := opt.AddedFiles()
	if err != nil {
		return nil, err
	}
	for _, rel := range added {
		if err := add(opt.Source(rel), path.Dir(rel), true); err != nil {
			return nil, err
		}
	}
	files, err := filepath.Glob(filepath.Join(opt.Root, "internal", "*", "*_test.go"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, file := range files {
		if err := add(file, "internal/"+filepath.Base(filepath.Dir(file)), false); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(targets, func(t Target) bool { return t.Name == name }) {
			return nil, errors.Errorf("no fuzz target %q, there are %v", name, targets)
		}
	}
	if len(names) > 0 {
		targets = slices.DeleteFunc(targets, func(t Target) bool { return !slices.Contains(names, t.Name) })
	}
	return targets, nil
}

func (t Target) String() string {
	return t.Name
}

// RunAll runs targets one after another, each for the duration d.
func RunAll(ctx context.Context, targets []Target, t *assemble.Tree, d time.Duration) error {
	var failed []error
	for _, target := range targets {
		progress.Printf("%s in %s for %s", target.Name, target.Pkg, d)
		failed = append(failed, Run(ctx, target, t.Root, t.Dir, d))
		if ctx.Err() != nil {
			return errors.WithStack(context.Cause(ctx))
		}
	}
	return stderrors.Join(failed...)
}

// Failing returns the folder with the failed inputs, in the repository at root: testdata
// of the package, or for targets in the tree a folder beside the trees, because the next
// command that writes the tree removes other files from it.
func (t Target) Failing(root string) string {
	if t.Tree {
		return filepath.Join(root, "build", "fuzz", t.Name)
	}
	return t.testdata(root)
}

// testdata returns the folder to which the go command writes inputs that fail, and from
// which it reads them.
func (t Target) testdata(dir string) string {
	return filepath.Join(dir, filepath.FromSlash(t.Pkg), "testdata", "fuzz", t.Name)
}

// Run runs a target for the duration d in the repository at root, or in its tree. It
// starts with the inputs that failed before. The build cache keeps new inputs, and the
// folder Failing keeps inputs that fail.
func Run(ctx context.Context, t Target, root, tree string, d time.Duration) error {
	dir := root
	if t.Tree {
		dir = tree
		if err := link(t.testdata(tree), t.Failing(root)); err != nil {
			return err
		}
	}
	// by default, go test spends up to a minute on minimizing each new input
	args := []string{"test", "-buildvcs=false", "-run", "^$", "-fuzz", "^" + t.Name + "$", "-fuzztime", d.String(), "-fuzzminimizetime", "100x"}
	cmd := gomod.Command(ctx, dir, append(args, t.Pkg)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if failing, _ := os.ReadDir(t.Failing(root)); err != nil && len(failing) > 0 {
		return errors.Wrapf(err, "%s in %s: inputs that fail are in %s, and graphload fuzz --target %s --time 1s runs them again", t.Name, t.Pkg, t.Failing(root), t.Name)
	}
	return errors.Wrapf(err, "%s in %s", t.Name, t.Pkg)
}

// link makes path a link to the folder target.
func link(path, target string) error {
	for _, dir := range []string{target, filepath.Dir(path)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return errors.WithStack(err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Symlink(target, path))
}
