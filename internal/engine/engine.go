// Package engine builds the Docker engine with the assembled tree instead of
// BuildKit: dockerd and docker-proxy, with the flags and version strings of the
// static builds of the engine's own hack/make.sh.
package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/embed"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// Module is the module path of the engine.
const Module = "github.com/moby/moby/v2"

// DefaultVersion is the release of the engine that graphload engine builds by default.
const DefaultVersion = "v2.0.0-beta.24"

// sums has the checksums of known releases. The go command checks other releases with
// its checksum database.
var sums = map[string]string{
	DefaultVersion: "h1:sWv7EckkDJhpraR9yUjkw1XeVf39+MWd58E22PYloNA=",
}

// BuildTags are the build tags of hack/make.sh for static binaries. They leave out the
// tag for journald, as the engine's own static builds do, because it needs libsystemd,
// which has no static library.
const BuildTags = "netgo osusergo static_build nri_no_wasm"

// Commands are the programs of the engine, and whether they have parts in C.
var Commands = []struct {
	Name string
	CGo  bool
}{
	{"dockerd", true}, // for disk quotas
	{"docker-proxy", false},
}

// Source is the source of the engine, ready to be built.
type Source struct {
	Version  string
	Dir      string
	BuildKit string // the release that it requires
	Embedded bool   // the assembled tree replaces BuildKit

	time time.Time // of the release
}

// Unmodified returns the unmodified source of a release in the module cache.
func Unmodified(ctx context.Context, root, version string) (*Source, error) {
	mod := gomod.Module{Path: Module, Version: version, Sum: sums[version]}
	dir, err := mod.Download(ctx)
	if err != nil {
		return nil, err
	}
	// the version may be a query
	if _, at, ok := strings.Cut(filepath.Base(dir), "@"); !ok || at != version {
		return nil, errors.Errorf("%q is not a release of %s: give the version in full", version, Module)
	}
	s := &Source{Version: version, Dir: dir}
	if s.time, err = mod.Time(ctx); err != nil {
		return nil, err
	}
	supported, err := assemble.Options{Root: root}.Releases()
	if err != nil {
		return nil, err
	}
	p, err := embed.Open(dir)
	if err != nil {
		return nil, err
	}
	p.Name = "Docker engine " + version
	if s.BuildKit, err = p.Release(supported); err != nil {
		return nil, err
	}
	return s, nil
}

// Prepare copies the source of a release to build/moby-<version> of the repository,
// and makes it use the tree of the BuildKit that it requires.
func Prepare(ctx context.Context, root, version string) (*Source, error) {
	s, err := Unmodified(ctx, root, version)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, "build", "moby-"+version)
	temp := dir + ".tmp" // beside dir, because the path of the tree is relative
	if err := os.RemoveAll(temp); err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.RemoveAll(temp)
	if err := os.CopyFS(temp, os.DirFS(s.Dir)); err != nil {
		return nil, errors.WithStack(err)
	}
	p, err := embed.Open(temp)
	if err != nil {
		return nil, err
	}
	if _, _, err := embed.Into(ctx, root, p); err != nil {
		return nil, errors.Wrapf(err, "Docker engine %s", version)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	if err := os.Rename(temp, dir); err != nil {
		return nil, errors.WithStack(err)
	}
	s.Dir, s.Embedded = dir, true
	return s, nil
}

// Binaries builds the binaries of the engine, and returns their folder: bin for the
// default release, bin/moby-<version> for others, and upstream below it for the
// unmodified one.
func Binaries(ctx context.Context, root, version string, unmodified bool) (string, error) {
	start := time.Now()
	prepare, out := Prepare, filepath.Join(root, "bin")
	if version != DefaultVersion {
		out = filepath.Join(out, "moby-"+version)
	}
	if unmodified {
		prepare, out = Unmodified, filepath.Join(out, "upstream")
	}
	src, err := prepare(ctx, root, version)
	if err != nil {
		return "", err
	}
	rev, err := build.Revision(ctx, root)
	if err != nil {
		return "", err
	}
	progress.Printf("building dockerd and docker-proxy %s with BuildKit %s in %s", src.DockerVersion(), src.BuildKit, src.Dir)
	if err := src.Build(ctx, out, rev); err != nil {
		return "", err
	}
	progress.Printf("built in %s", time.Since(start).Round(time.Second))
	return out, nil
}

// DockerVersion returns the version that docker version shows.
func (s *Source) DockerVersion() string {
	v := strings.TrimPrefix(s.Version, "v")
	if s.Embedded {
		v += build.Suffix
	}
	return v
}

// Build builds static dockerd and docker-proxy into the folder out. revision is the
// commit of the repository with the change.
func (s *Source) Build(ctx context.Context, out, revision string) error {
	for _, c := range Commands {
		cgo := "CGO_ENABLED=0"
		if c.CGo {
			cgo = "CGO_ENABLED=1"
		}
		err := gomod.Build(ctx, s.Dir, "./cmd/"+c.Name, filepath.Join(out, c.Name), s.LDFlags(revision), []string{cgo}, "-tags", BuildTags)
		if err != nil {
			return err
		}
	}
	return nil
}

// LDFlags returns the flags of the linker. They have the tag of the engine in place of
// its commit, which its module does not name. The names of platform and product are for
// packages, and stay empty as in the engine's own builds.
func (s *Source) LDFlags(revision string) string {
	var b strings.Builder
	b.WriteString("-w -extldflags -static")
	set := func(name, value string) {
		b.WriteString(" -X " + name + "=" + value)
	}
	set(Module+"/dockerversion.Version", s.DockerVersion())
	set(Module+"/dockerversion.GitCommit", s.Version)
	set(Module+"/dockerversion.BuildTime", s.time.UTC().Format("2006-01-02T15:04:05.000000000-07:00"))
	if s.Embedded {
		// a replaced module has no version in the binary
		set(upstream.Module+"/version.Version", s.BuildKit+build.Suffix)
		set(upstream.Module+"/version.Package", build.Package)
		set(upstream.Module+"/version.Revision", revision)
	}
	return b.String()
}
