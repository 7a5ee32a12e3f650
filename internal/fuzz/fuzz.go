// Package fuzz lists the fuzz targets of the repository and runs them.
package fuzz

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// Target is a fuzz target.
type Target struct {
	Name string
	Tree bool   // in the assembled tree, not in the repository
	Pkg  string // relative to the tree or the repository
}

// Targets are all fuzz targets.
var Targets = []Target{
	{Name: "FuzzLazySolve", Tree: true, Pkg: "./solver/llbsolver"},
	{Name: "FuzzOpHeader", Tree: true, Pkg: "./solver/pb"},
	{Name: "FuzzApply", Pkg: "./internal/seam"},
	{Name: "FuzzParse", Pkg: "./internal/seam"},
}

// Run runs a target for some time in the repository at root, or in its tree. New
// inputs are kept in the build cache, those that fail in testdata of the
// package.
func Run(ctx context.Context, t Target, root, tree string, d time.Duration) error {
	dir := root
	if t.Tree {
		dir = tree
	}
	// by default a minute is spent on making each new input small
	args := []string{"test", "-buildvcs=false", "-run", "^$", "-fuzz", "^" + t.Name + "$", "-fuzztime", d.String(), "-fuzzminimizetime", "100x"}
	cmd := exec.CommandContext(ctx, "go", append(args, t.Pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// the workers are children of the test, which is one of the go command: all
	// of them are interrupted
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	return errors.Wrapf(cmd.Run(), "%s in %s", t.Name, t.Pkg)
}
