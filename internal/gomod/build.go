package gomod

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// BuildTags are the build tags of BuildKit's releases.
const BuildTags = "osusergo netgo static_build seccomp"

// Build builds a package of the module in dir, such that the binary does not depend on
// the machine. It replaces the file out only if the build succeeds.
func Build(ctx context.Context, dir, pkg, out, ldflags string, env []string, args ...string) error {
	err := files.Replace(out, func(tmp string) error {
		args := append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", BuildTags, "-ldflags", ldflags, "-o", tmp}, args...)
		cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
		cmd.Dir = dir
		cmd.Env = slices.Concat(os.Environ(), []string{"GOWORK=off"}, env)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		return cmd.Run()
	})
	return errors.Wrapf(err, "failed to build %s", filepath.Base(out))
}

// Tool is a command of a module at one version.
type Tool struct {
	Module
	Pkg     string // in the module
	Name    string // of the command, by default that of the package
	LDFlags string
	Mod     string // name of its go.mod without .mod, for a project that has no file go.mod
}

// Install returns the path of the tool. The first call builds it into the cache folder
// of the user. It builds in the folder of the module, because go install refuses modules
// with exclude and replace directives, which only count in the main module.
func (t Tool) Install(ctx context.Context) (string, error) {
	name := t.Name
	if name == "" {
		name = path.Base(t.Pkg)
	}
	out, err := files.CacheDir("tools", name+"-"+t.Version)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	src, err := t.Download(ctx)
	if err != nil {
		return "", err
	}
	if t.Mod != "" {
		temp, err := os.MkdirTemp("", "graphload-tool-")
		if err != nil {
			return "", errors.WithStack(err)
		}
		defer os.RemoveAll(temp)
		if err := t.copyModule(src, temp); err != nil {
			return "", err
		}
		src = temp
	}
	return out, Build(ctx, src, t.Pkg, out, "-s -w "+t.LDFlags, []string{"CGO_ENABLED=0", "GOFLAGS="}, "-mod=readonly", "-tags=")
}

// copyModule copies the source to dir, where the go command finds its go.mod.
func (t Tool) copyModule(src, dir string) error {
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		return errors.WithStack(err)
	}
	for _, ext := range []string{".mod", ".sum"} {
		if err := os.Rename(filepath.Join(dir, t.Mod+ext), filepath.Join(dir, "go"+ext)); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}
