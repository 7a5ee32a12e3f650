// Package upstream fetches releases of BuildKit, and of the other modules in the seam
// list. A release is a version together with the checksum of its source, so a tree
// assembled from it is the same on every machine.
package upstream

import (
	"context"
	"os"
	"path/filepath"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
	"golang.org/x/mod/modfile"
)

// Module is the module path of BuildKit.
const Module = "github.com/moby/buildkit"

// Source is the extracted source of a release in the module cache. Callers must not
// write to it.
type Source struct {
	Module  string // path
	Version string
	Dir     string
	Sum     string // h1: checksum, as in go.sum
}

// Root returns the root folder of the repository around the working directory.
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

// Fetch downloads a release of a module, or finds it in the module cache. It returns an
// error if the checksum of the source is not sum. An empty sum accepts any source.
func Fetch(ctx context.Context, module, version, sum string) (*Source, error) {
	src, err := gomod.Module{Path: module, Version: version, Sum: sum}.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	if src.Version != version { // the go command accepts a query, too
		return nil, errors.Errorf("%q is not a release but stands for %s: give the version in full", version, src.Version)
	}
	return &Source{Module: module, Version: version, Dir: src.Dir, Sum: src.Sum}, nil
}
