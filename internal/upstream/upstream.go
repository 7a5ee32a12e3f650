// Package upstream fetches releases of BuildKit, and of other modules that are
// changed. A release is a version together with the checksum of its source, so
// what is assembled from it is the same on every machine.
package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
	"golang.org/x/mod/modfile"
)

// Module is the module path of BuildKit.
const Module = "github.com/moby/buildkit"

// Source is the extracted source of a release in the module cache. It must not
// be written to.
type Source struct {
	Module  string // path
	Version string
	Dir     string
	Sum     string // h1: checksum, as in go.sum
}

// CacheDir returns a folder, of the given path, among those that are kept between
// runs: in the cache folder of the user.
func CacheDir(elem ...string) (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(append([]string{dir, "graphload"}, elem...)...), errors.WithStack(err)
}

// Root returns the folder of the repository that the working directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", errors.WithStack(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "seams.yaml")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", errors.Errorf("no seams.yaml in %s or a folder above it: run graphload inside its repository", dir)
		}
	}
}

// DefaultVersion returns the release that the go.mod of the repository
// requires.
func DefaultVersion(root string) (string, error) {
	path := filepath.Join(root, "go.mod")
	dt, err := os.ReadFile(path)
	if err != nil {
		return "", errors.WithStack(err)
	}
	f, err := modfile.ParseLax(path, dt, nil)
	if err != nil {
		return "", errors.WithStack(err)
	}
	for _, req := range f.Require {
		if req.Mod.Path == Module {
			return req.Mod.Version, nil
		}
	}
	return "", errors.Errorf("%s does not require %s", path, Module)
}

// Fetch downloads a release of a module with the go command, or finds it in the
// module cache. An empty sum accepts any source, otherwise a different one is an
// error.
func Fetch(ctx context.Context, module, version, sum string) (*Source, error) {
	goCmd, err := exec.LookPath("go")
	if err != nil {
		return nil, errors.Wrapf(err, "the go command is needed to fetch %s: install Go 1.26 or add it to PATH", module)
	}
	cmd := exec.CommandContext(ctx, goCmd, "mod", "download", "-json", module+"@"+version)
	cmd.Dir = os.TempDir() // not in a module whose go.mod could replace it
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()

	var mod struct {
		Version, Dir, Sum, Error string
	}
	if err := json.Unmarshal(stdout.Bytes(), &mod); err != nil {
		if runErr == nil {
			runErr = err
		}
		return nil, errors.Wrapf(runErr, "failed to fetch %s@%s: %s", module, version, bytes.TrimSpace(stderr.Bytes()))
	}
	if mod.Error != "" {
		return nil, errors.Errorf("failed to fetch %s@%s: %s", module, version, mod.Error)
	}
	if mod.Version != version { // the go command takes a query, too
		return nil, errors.Errorf("%q is not a release but stands for %s: give the version in full", version, mod.Version)
	}
	if sum != "" && mod.Sum != sum {
		return nil, errors.Errorf("checksum of %s@%s is %s, but seams.yaml records %s: clean the module cache, and compare the two sources before you change the record", module, version, mod.Sum, sum)
	}
	return &Source{Module: module, Version: version, Dir: mod.Dir, Sum: mod.Sum}, nil
}
