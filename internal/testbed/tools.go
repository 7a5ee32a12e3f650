package testbed

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

// tool is a command of a Go module at one version.
type tool struct {
	name    string
	module  string
	version string
	sum     string // h1: checksum of the module, as in go.sum
	pkg     string
	ldflags string
}

// buildxSums has the checksums of the releases of buildx that can be used.
var buildxSums = map[string]string{
	"v0.15.1": "h1:1cO6JIc0rOoC8tlxfXoh1HH1uxaNvYH1q7J7kv5enhw=",
	"v0.23.0": "h1:qoYhuWyZ6PVCrWbkxClLzBWDBCUkyFK6Chjzg6nU+V8=",
	"v0.29.1": "h1:58hxM5Z4mnNje3G5NKfULT9xCr8ooM8XFtlfUK9bKaA=",
	"v0.33.0": "h1:xuZeuQe/C/2tvLDgiIA6+Ynq3FFWSfsGNWIHM3q1hD8=",
	"v0.35.0": "h1:5r/ZcAC0s2oZ1XOJHvYFYbj44I4rxRsIdfsRBeXClks=",
	"v0.36.1": "h1:U7JTUSSeooFXbG+0HcI+CMjEIkvuZgJegXRZ1q7K63Q=",
	"v0.37.2": "h1:6EYElyvQe7aPnp2yDmCLa4/0jXYs8dAHfWKVO6dsFwA=",
	"v0.38.2": "h1:TTn5GXRaZatKpvJ4l7xXuS/N8kTIkLFP0WvGRkbbW9U=",
}

// PatchedBuildx is the version of the buildx that graphload buildx builds.
const PatchedBuildx = "v0.38.2+graphload"

// BuildxVersions are the releases of buildx that can be used, oldest first.
func BuildxVersions() []string {
	return slices.SortedFunc(maps.Keys(buildxSums), semver.Compare)
}

// Buildx returns the path of an unmodified buildx of the given version, or of
// PatchedBuildx in bin of the repository. One that is unmodified is built when it is
// used for the first time, and kept in the cache folder of the user.
func Buildx(ctx context.Context, version string) (string, error) {
	if version == PatchedBuildx {
		root, err := upstream.Root()
		if err != nil {
			return "", err
		}
		path := filepath.Join(root, "bin", "buildx")
		if _, err := os.Stat(path); err != nil {
			return "", errors.Errorf("%s is missing: run go run ./cmd/graphload buildx", path)
		}
		return path, nil
	}
	const module = "github.com/docker/buildx"
	sum, ok := buildxSums[version]
	if !ok {
		return "", errors.Errorf("no checksum for buildx %s", version)
	}
	return tool{
		name:    "buildx",
		module:  module,
		version: version,
		sum:     sum,
		pkg:     "./cmd/buildx",
		ldflags: "-X " + module + "/version.Version=" + version,
	}.install(ctx)
}

// DockerfileFrontend returns the path of the Dockerfile frontend of the BuildKit
// that go.mod requires, as it is in an image for gateway.v0. It is built when it is
// used for the first time, and kept in the cache folder of the user.
func DockerfileFrontend(ctx context.Context) (string, error) {
	root, err := upstream.Root()
	if err != nil {
		return "", err
	}
	version, err := upstream.DefaultVersion(root)
	if err != nil {
		return "", err
	}
	list, err := seam.Load(filepath.Join(root, assemble.SeamList))
	if err != nil {
		return "", err
	}
	return tool{
		name:    "dockerfile-frontend",
		module:  upstream.Module,
		version: version,
		sum:     list.Releases[version],
		pkg:     "./frontend/dockerfile/cmd/dockerfile-frontend",
	}.install(ctx)
}

// install builds the tool in the folder of its module: go install refuses
// modules with exclude and replace directives, which are for the main module.
func (t tool) install(ctx context.Context) (_ string, retErr error) {
	dir, err := upstream.CacheDir("tools")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, t.name+"-"+t.version)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	defer func() {
		retErr = errors.Wrapf(retErr, "failed to build %s %s", t.name, t.version)
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	temp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer os.RemoveAll(temp)
	src, err := gomod.Module{Path: t.module, Version: t.version, Sum: t.sum}.Download(ctx)
	if err != nil {
		return "", err
	}
	out := filepath.Join(temp, t.name)
	build := command(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-mod=readonly", "-ldflags", "-s -w "+t.ldflags, "-o", out, t.pkg)
	build.Dir = src
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if _, err := output(build); err != nil {
		return "", err
	}
	return path, errors.WithStack(os.Rename(out, path))
}
