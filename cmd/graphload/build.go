package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// modulePath is the package that buildkitd --version shows.
const modulePath = "github.com/graphload/graphload"

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:  "build",
		Usage: "build static buildkitd and buildctl into bin",
		Flags: []cli.Flag{
			unmodifiedFlag(),
			&cli.BoolFlag{Name: "race", Usage: "build with the race detector"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			opt.Unmodified = cmd.Bool("unmodified")
			_, err = buildBinaries(ctx, opt, cmd.Bool("race"))
			return err
		},
	}
}

// binDir is where the binaries of a tree go: bin for the release that go.mod
// requires, bin/<version> for others, and upstream or race below.
func binDir(opt assemble.Options, race bool) (string, error) {
	def, err := upstream.DefaultVersion(opt.Root)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(opt.Root, "bin")
	if opt.Version != def {
		dir = filepath.Join(dir, opt.Version)
	}
	if opt.Unmodified {
		dir = filepath.Join(dir, "upstream")
	}
	if race {
		dir = filepath.Join(dir, "race")
	}
	return dir, nil
}

// buildBinaries assembles the tree, builds buildkitd and buildctl as upstream
// does, and returns their folder.
func buildBinaries(ctx context.Context, opt assemble.Options, race bool) (string, error) {
	t, err := writeTree(ctx, opt)
	if err != nil {
		return "", err
	}
	return buildTree(ctx, opt, t, race)
}

// buildTree builds buildkitd and buildctl in a tree that has been written.
func buildTree(ctx context.Context, opt assemble.Options, t *assemble.Tree, race bool) (string, error) {
	dir, err := binDir(opt, race)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	ldflags, err := versionFlags(ctx, opt, upstream.Module)
	if err != nil {
		return "", err
	}
	env, args := []string{"CGO_ENABLED=0"}, []string(nil)
	if race {
		env = []string{"CGO_ENABLED=1"}
		ldflags += " -extldflags -static"
		args = append(args, "-race")
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		progressf("building %s %s", name, version(opt))
		if err := gomod.Build(ctx, t.Dir, "./cmd/"+name, filepath.Join(dir, name), ldflags, env, args...); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// version is what a program of the tree says that it is.
func version(opt assemble.Options) string {
	if opt.Unmodified {
		return opt.Version
	}
	return opt.Version + "+graphload"
}

// versionFlags returns the flags of the linker that set what --version shows, for a
// program of the given module.
func versionFlags(ctx context.Context, opt assemble.Options, module string) (string, error) {
	pkg, rev := module, ""
	if !opt.Unmodified {
		pkg = modulePath
		var err error
		if rev, err = revision(ctx, opt.Root); err != nil {
			return "", err
		}
	}
	vars := module + "/version."
	return "-X " + vars + "Package=" + pkg + " -X " + vars + "Revision=" + rev + " -X " + vars + "Version=" + version(opt), nil
}

// revision returns the commit of the repository, with .m when there are
// changes that are not committed.
func revision(ctx context.Context, root string) (string, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = root
		dt, err := cmd.Output()
		return strings.TrimSpace(string(dt)), errors.Wrapf(err, "git %s", strings.Join(args, " "))
	}
	rev, err := git("rev-parse", "HEAD")
	if err != nil {
		return "", err
	}
	status, err := git("status", "--porcelain")
	if err != nil {
		return "", err
	}
	if status != "" {
		rev += ".m"
	}
	return rev, nil
}
