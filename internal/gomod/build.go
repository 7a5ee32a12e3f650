package gomod

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/pkg/errors"
)

// BuildTags are those of BuildKit's releases.
const BuildTags = "osusergo netgo static_build seccomp"

// Build builds a package of the module in dir without what depends on the
// machine. The file out is replaced when that has succeeded.
func Build(ctx context.Context, dir, pkg, out, ldflags string, env []string, args ...string) error {
	args = append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", BuildTags, "-ldflags", ldflags, "-o", out + ".tmp"}, args...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = slices.Concat(os.Environ(), []string{"GOWORK=off"}, env)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		os.Remove(out + ".tmp")
		return errors.Wrapf(err, "failed to build %s", filepath.Base(out))
	}
	return errors.WithStack(os.Rename(out+".tmp", out))
}
