package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// treePackages are the packages of the assembled tree that are tested: those
// with added files, and those below them. The tests of package client need the
// images of BuildKit's integration harness.
var treePackages = []string{
	"./cache", "./solver", "./solver/debuggraph", "./solver/llbsolver/...", "./session/...", "./frontend/gateway", "./frontend/gateway/client", "./frontend/gateway/pb",
	"./frontend/dockerfile/version",
	"./source", "./util/graphload/...", "./cmd/buildkitd",
}

func testCommand() *cli.Command {
	return &cli.Command{
		Name:  "test",
		Usage: "run the tests of this repository and of the packages that it changes",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tree-only", Usage: "only the packages of the assembled trees"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			t, err := writeTree(ctx, opt)
			if err != nil {
				return err
			}
			var failed []string
			if err := treeTests(ctx, t, treePackages); err != nil {
				failed = append(failed, err.Error())
			}
			if err := buildxTests(ctx, opt.Root); err != nil {
				failed = append(failed, err.Error())
			}
			if !cmd.Bool("tree-only") {
				if err := repositoryTests(ctx, opt); err != nil {
					failed = append(failed, err.Error())
				}
			}
			if len(failed) > 0 {
				return errors.Errorf("tests failed: %s", strings.Join(failed, ", "))
			}
			return nil
		},
	}
}

// treeTests runs the added tests with the race detector, and then all tests of
// the packages without it, because the scheduler of upstream has data races of
// its own that some of upstream's tests run into.
func treeTests(ctx context.Context, t *assemble.Tree, pkgs []string) error {
	added, err := addedTests(t)
	if err != nil {
		return err
	}
	raceErr := goTest(ctx, t.Dir, append([]string{"-race", "-short", "-timeout", "30m", "-run", "^(" + strings.Join(added, "|") + ")$"}, pkgs...)...)
	// benchmarks run once, so that they cannot rot
	if err := goTest(ctx, t.Dir, append([]string{"-short", "-bench", ".", "-benchtime", "1x"}, pkgs...)...); err != nil {
		return err
	}
	return raceErr
}

// buildxTests does the same in the tree of buildx, whose own tests of linked targets
// are in the package that is changed.
func buildxTests(ctx context.Context, root string) error {
	t, err := writeBuildx(ctx, root)
	if err != nil {
		return err
	}
	return treeTests(ctx, t, t.Packages())
}

// addedTests returns the names of the tests and fuzz targets in added files.
func addedTests(t *assemble.Tree) (names []string, _ error) {
	for _, rel := range t.Added {
		if !strings.HasSuffix(rel, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), t.Source(rel), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		for _, d := range f.Decls {
			if fd, ok := d.(*ast.FuncDecl); ok && fd.Recv == nil && (strings.HasPrefix(fd.Name.Name, "Test") || strings.HasPrefix(fd.Name.Name, "Fuzz")) {
				names = append(names, fd.Name.Name)
			}
		}
	}
	return names, nil
}

// repositoryTests runs the tests of the repository itself, the end-to-end ones
// with the binaries of both trees.
func repositoryTests(ctx context.Context, opt assemble.Options) error {
	if err := installPackages(ctx); err != nil {
		return err
	}
	if os.Getenv("CI") == "true" { // where tests fail that lack something
		if err := installMissing(ctx, unitPackages); err != nil {
			return err
		}
	}
	for _, unmodified := range []bool{false, true} {
		opt.Unmodified = unmodified
		if _, err := buildBinaries(ctx, opt, false); err != nil {
			return err
		}
	}
	if err := buildBuildx(ctx, opt.Root); err != nil {
		return err
	}
	if err := goTest(ctx, opt.Root, "-timeout", "40m", "./..."); err != nil {
		return err
	}
	return embedTest(ctx, opt)
}

// embedTest tests the example, a module of its own that requires the default
// release. Its go.mod is committed with what embed adds.
func embedTest(ctx context.Context, opt assemble.Options) error {
	def, err := upstream.DefaultVersion(opt.Root)
	if err != nil || opt.Version != def {
		return err
	}
	dir := filepath.Join(opt.Root, "examples", "embed")
	if _, err := embedTree(ctx, os.Stderr, opt.Root, dir); err != nil {
		return err
	}
	return goTest(ctx, dir, "./...")
}

func goTest(ctx context.Context, dir string, args ...string) error {
	args = append([]string{"test", "-buildvcs=false"}, args...)
	rel, err := filepath.Rel(filepath.Dir(filepath.Dir(dir)), dir)
	if err != nil {
		rel = dir
	}
	progressf("%s: go %s", rel, strings.Join(args, " "))
	cmd := gomod.Command(ctx, dir, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Wrapf(cmd.Run(), "go test in %s", dir)
}

// debianPackages are the tools that the end-to-end tests run, by the command
// that tells if a package is there.
var debianPackages = map[string]string{
	"busybox":   "busybox-static",
	"git":       "git",
	"runc":      "runc",
	"ssh-agent": "openssh-client",
}

// installPackages installs what is missing when it can, as root on Debian.
func installPackages(ctx context.Context) error {
	return installMissing(ctx, debianPackages)
}

// installMissing installs packages whose command, or file when the name is a
// path, is not there.
func installMissing(ctx context.Context, pkgs map[string]string) error {
	var missing []string
	for name, pkg := range pkgs {
		_, err := exec.LookPath(name)
		if filepath.IsAbs(name) {
			_, err = os.Stat(name)
		}
		if err != nil && !slices.Contains(missing, pkg) {
			missing = append(missing, pkg)
		}
	}
	slices.Sort(missing)
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 {
		return errors.Errorf("install %s, or run as root on Debian", strings.Join(missing, " "))
	}
	progressf("installing %s", strings.Join(missing, " "))
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if dt, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s\n", dt)
			return errors.Wrapf(err, "apt-get %s", strings.Join(args, " "))
		}
	}
	return nil
}
