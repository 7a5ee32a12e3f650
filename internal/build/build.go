// Package build builds the programs of assembled trees into bin of the repository.
package build

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// Package is the package in the output of buildkitd --version.
const Package = "github.com/graphload/graphload"

// Suffix follows the version of programs with the change.
const Suffix = "+graphload"

// buildx is the name of buildx in the seam list.
const buildx = "buildx"

// Tree assembles a tree.
func Tree(ctx context.Context, opt assemble.Options) (*assemble.Tree, error) {
	t, err := assemble.Plan(ctx, opt)
	if err != nil {
		return nil, err
	}
	progress.Printf("assembling %s: %d seams, %d added files", opt.Release(), len(t.Matches), len(t.Added))
	return t, t.Write()
}

// BuildxTree assembles the tree of buildx.
func BuildxTree(ctx context.Context, root string) (*assemble.Tree, error) {
	opt, err := assemble.Default(root, buildx)
	if err != nil {
		return nil, err
	}
	return Tree(ctx, opt)
}

// Dir returns the folder for the binaries of a tree: bin for the release that go.mod
// requires, bin/<version> for others, and the folders upstream or race below.
func Dir(opt assemble.Options, race bool) (string, error) {
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

// Daemon assembles the tree, builds buildkitd and buildctl with upstream's flags, and
// returns their folder.
func Daemon(ctx context.Context, opt assemble.Options, race bool) (string, error) {
	t, err := Tree(ctx, opt)
	if err != nil {
		return "", err
	}
	return InTree(ctx, t, race)
}

// InTree is Daemon for a tree that is already assembled.
func InTree(ctx context.Context, t *assemble.Tree, race bool) (string, error) {
	opt := t.Options
	dir, err := Dir(opt, race)
	if err != nil {
		return "", err
	}
	ldflags, err := VersionFlags(ctx, opt, upstream.Module)
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
		progress.Printf("building %s %s", name, Version(opt))
		if err := gomod.Build(ctx, t.Dir, "./cmd/"+name, filepath.Join(dir, name), ldflags, env, args...); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// Daemons builds upstream's daemon and the one with the change.
func Daemons(ctx context.Context, opt assemble.Options) error {
	for _, unmodified := range []bool{true, false} {
		opt.Unmodified = unmodified
		if _, err := Daemon(ctx, opt, false); err != nil {
			return err
		}
	}
	return nil
}

// Buildx assembles the tree of buildx and builds it.
func Buildx(ctx context.Context, root string) error {
	t, err := BuildxTree(ctx, root)
	if err != nil {
		return err
	}
	ldflags, err := VersionFlags(ctx, t.Options, t.Upstream.Module)
	if err != nil {
		return err
	}
	progress.Printf("building buildx %s", Version(t.Options))
	return gomod.Build(ctx, t.Dir, "./cmd/buildx", filepath.Join(root, "bin", "buildx"), ldflags, []string{"CGO_ENABLED=0"})
}

// All builds the programs for end-to-end tests: both daemons, and buildx.
func All(ctx context.Context, opt assemble.Options) error {
	if err := Daemons(ctx, opt); err != nil {
		return err
	}
	return Buildx(ctx, opt.Root)
}

// Version returns the version that a program of the tree prints.
func Version(opt assemble.Options) string {
	if opt.Unmodified {
		return opt.Version
	}
	return opt.Version + Suffix
}

// VersionFlags returns the flags of the linker that set the output of --version for a
// program of the given module.
func VersionFlags(ctx context.Context, opt assemble.Options, module string) (string, error) {
	pkg, rev := module, ""
	if !opt.Unmodified {
		pkg = Package
		var err error
		if rev, err = Revision(ctx, opt.Root); err != nil {
			return "", err
		}
	}
	vars := module + "/version."
	return "-X " + vars + "Package=" + pkg + " -X " + vars + "Revision=" + rev + " -X " + vars + "Version=" + Version(opt), nil
}

// Revision returns the commit of the repository, followed by .m if there are
// uncommitted changes.
func Revision(ctx context.Context, root string) (string, error) {
	rev, err := Git(ctx, root, "rev-parse", "HEAD")
	if err != nil {
		return "", err
	}
	status, err := Git(ctx, root, "status", "--porcelain")
	if err != nil {
		return "", err
	}
	if status != "" {
		rev += ".m"
	}
	return rev, nil
}

// Git runs git in the repository and returns its output.
func Git(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = root
	dt, err := cmd.Output()
	return strings.TrimSpace(string(dt)), errors.Wrapf(err, "git %s", strings.Join(args, " "))
}
