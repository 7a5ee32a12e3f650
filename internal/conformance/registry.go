package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// The registry that the harness starts, as a Go module.
const (
	registryModule  = "github.com/distribution/distribution/v3"
	registryVersion = "v3.1.2"
	registrySum     = "h1:/Bv2YIqqSR00HiO49FT93hovy6r9IlrzwUDsJjCN5qg="
)

// RegistryBinary returns the path of the registry. It is built when it is used
// for the first time, and kept in the cache folder of the user.
func RegistryBinary(ctx context.Context) (_ string, retErr error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", errors.WithStack(err)
	}
	dir := filepath.Join(cache, "graphload", "tools")
	path := filepath.Join(dir, "registry-"+registryVersion)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	temp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer os.RemoveAll(temp)

	// in a folder without a go.mod that could replace the module
	dt, runErr := goCommand(ctx, temp, "mod", "download", "-json", registryModule+"@"+registryVersion)
	var mod struct {
		Dir, Sum, Error string
	}
	if err := json.Unmarshal(dt, &mod); err != nil {
		if runErr == nil {
			runErr = err
		}
		return "", errors.Wrapf(runErr, "failed to download the registry")
	}
	if mod.Error != "" {
		return "", errors.Errorf("failed to download the registry: %s", mod.Error)
	}
	if mod.Sum != registrySum {
		return "", errors.Errorf("checksum of %s@%s is %s, not %s", registryModule, registryVersion, mod.Sum, registrySum)
	}
	out := filepath.Join(temp, "registry")
	if _, err := goCommand(ctx, mod.Dir, "build", "-buildvcs=false", "-trimpath", "-mod=readonly", "-ldflags", "-s -w", "-o", out, "./cmd/registry"); err != nil {
		return "", errors.Wrap(err, "failed to build the registry")
	}
	return path, errors.WithStack(os.Rename(out, path))
}

// goCommand runs the go command in dir and returns what it printed.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, err := cmd.Output()
	return dt, errors.Wrapf(err, "go %s: %s", args[0], bytes.TrimSpace(stderr.Bytes()))
}
