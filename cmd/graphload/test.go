package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// treeTests are the packages of the assembled tree that are tested: those with
// added files, with all of their own tests. Tests that need the images of
// BuildKit's integration harness skip themselves with -short.
var treeTests = []struct {
	packages []string
	args     []string
}{
	{
		packages: []string{
			"./solver", "./solver/llbsolver/...", "./session/...", "./frontend/gateway/client", "./frontend/gateway/pb",
			"./util/graphload/...", "./util/resolver/...",
		},
		args: []string{"-race", "-short"},
	},
}

func testCommand() *cli.Command {
	return &cli.Command{
		Name:  "test",
		Usage: "run the tests of this repository and of the packages that it changes",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tree-only", Usage: "only the packages of the assembled tree"},
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
			for _, tt := range treeTests {
				if err := goTest(ctx, t.Dir, append(tt.args, tt.packages...)...); err != nil {
					failed = append(failed, strings.Join(tt.packages, " "))
				}
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

// repositoryTests runs the tests of the repository itself, the end-to-end ones
// with the binaries of both trees.
func repositoryTests(ctx context.Context, opt assemble.Options) error {
	if err := installPackages(ctx); err != nil {
		return err
	}
	for _, pristine := range []bool{false, true} {
		opt.Pristine = pristine
		if _, err := buildBinaries(ctx, opt, false); err != nil {
			return err
		}
	}
	return goTest(ctx, opt.Root, "-timeout", "40m", "./...")
}

func goTest(ctx context.Context, dir string, args ...string) error {
	args = append([]string{"test", "-buildvcs=false"}, args...)
	rel, err := filepath.Rel(filepath.Dir(filepath.Dir(dir)), dir)
	if err != nil {
		rel = dir
	}
	progressf("%s: go %s", rel, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
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
	var missing []string
	for name, pkg := range debianPackages {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, pkg)
		}
	}
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
