package testbed

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// Buildx returns the path of an unmodified buildx of the given version. It is
// built from its Go module with its own go.mod when it is used for the first
// time, and kept in the cache folder of the user.
func Buildx(ctx context.Context, version string) (string, error) {
	return goTool(ctx, "buildx", "github.com/docker/buildx", version, "./cmd/buildx",
		"-X github.com/docker/buildx/version.Version="+version)
}

func goTool(ctx context.Context, name, module, version, pkg, ldflags string) (_ string, retErr error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", errors.WithStack(err)
	}
	dir := filepath.Join(cache, "graphload", "tools")
	path := filepath.Join(dir, name+"-"+version)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	defer func() {
		retErr = errors.Wrapf(retErr, "failed to build %s %s", name, version)
	}()

	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@"+version)
	cmd.Dir = os.TempDir()
	dt, err := cmd.Output()
	if err != nil {
		return "", errors.Wrapf(err, "%s", dt)
	}
	var mod struct{ Dir string }
	if err := json.Unmarshal(dt, &mod); err != nil {
		return "", errors.WithStack(err)
	}
	// the go command takes exclude and replace directives from the main module
	// only, so the tool has to be the main module
	src, err := os.MkdirTemp("", "graphload-"+name+"-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer os.RemoveAll(src)
	if err := os.CopyFS(src, os.DirFS(mod.Dir)); err != nil {
		return "", errors.WithStack(err)
	}
	if err := filepath.WalkDir(src, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(p, 0o755) // the module cache is read-only
	}); err != nil {
		return "", errors.WithStack(err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", ldflags, "-o", path+".tmp", pkg)
	build.Dir = src
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if dt, err := build.CombinedOutput(); err != nil {
		return "", errors.Wrapf(err, "%s", strings.TrimSpace(string(dt)))
	}
	return path, errors.WithStack(os.Rename(path+".tmp", path))
}
