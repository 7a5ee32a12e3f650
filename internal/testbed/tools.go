package testbed

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

// buildxSums has the checksums of the supported releases of buildx.
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

// PatchedBuildx is the version of the buildx built by graphload buildx.
const PatchedBuildx = "v0.38.2+graphload"

// BuildxVersions returns the supported releases of buildx, oldest first.
func BuildxVersions() []string {
	return slices.SortedFunc(maps.Keys(buildxSums), semver.Compare)
}

// CheckBuildx returns an error if one of the versions of buildx is not supported.
func CheckBuildx(versions []string) error {
	for _, version := range versions {
		if _, ok := buildxSums[version]; !ok && version != PatchedBuildx {
			return errors.Errorf("no checksum for buildx %s, there are those of %s", version, strings.Join(BuildxVersions(), ", "))
		}
	}
	return nil
}

// Buildx returns the path of an unmodified buildx of the given version, or of
// PatchedBuildx in bin of the repository. The first call builds an unmodified buildx
// into the cache folder of the user.
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
	if err := CheckBuildx([]string{version}); err != nil {
		return "", err
	}
	const module = "github.com/docker/buildx"
	return gomod.Tool{
		Module:  gomod.Module{Path: module, Version: version, Sum: buildxSums[version]},
		Pkg:     "./cmd/buildx",
		LDFlags: "-X " + module + "/version.Version=" + version,
	}.Install(ctx)
}

// DockerfileFrontend returns the path of the Dockerfile frontend of the BuildKit
// that go.mod requires, as in an image for gateway.v0. The first call builds it into
// the cache folder of the user.
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
	return gomod.Tool{
		Module: gomod.Module{Path: upstream.Module, Version: version, Sum: list.Releases[version]},
		Pkg:    "./frontend/dockerfile/cmd/dockerfile-frontend",
	}.Install(ctx)
}
