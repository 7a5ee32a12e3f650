package release

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// Architectures are the architectures of a release, with the triplets of their C
// compilers.
var Architectures = apt.Triplets

// Component is a binary of another project that is also in BuildKit's own archive or
// image.
type Component struct {
	Name   string
	Module gomod.Module
	Image  bool // only in the image

	pkg string
	cgo bool
}

var (
	runc        = gomod.Module{Path: "github.com/opencontainers/runc", Version: "v1.5.2", Sum: "h1:eUUowc2WJCnFYzI87C1WqRcu356Dk/wsoi90y+2wEfE="}
	cniPlugins  = gomod.Module{Path: "github.com/containernetworking/plugins", Version: "v1.9.1", Sum: "h1:8oU6WsIsU3bpnNZuvHp74a6cE1MJwbj2P7s4/yTUNlA="}
	rootlesskit = gomod.Module{Path: "github.com/rootless-containers/rootlesskit/v3", Version: "v3.2.0", Sum: "h1:yNzNHcceg+8ST+ckreY/U5BYti2UVXXwQYNldtXUtRM="}
)

// Components are the components of a release, built from the Go modules of their
// projects. BuildKit's emulators (buildkit-qemu-*) are not among them: they are not
// written in Go.
var Components = []Component{
	{Name: "buildkit-runc", Module: runc, pkg: ".", cgo: true},
	{Name: "buildkit-cni-bridge", Module: cniPlugins, pkg: "./plugins/main/bridge"},
	{Name: "buildkit-cni-loopback", Module: cniPlugins, pkg: "./plugins/main/loopback"},
	{Name: "buildkit-cni-host-local", Module: cniPlugins, pkg: "./plugins/ipam/host-local"},
	{Name: "buildkit-cni-firewall", Module: cniPlugins, pkg: "./plugins/meta/firewall"},
	{Name: "rootlesskit", Module: rootlesskit, pkg: "./cmd/rootlesskit", Image: true},
}

// Toolchain is the release of Go that builds a release, whichever one the machine has:
// the go command fetches it as a module. It is the newest, as that has all fixes of the
// standard library.
const Toolchain = "go1.26.10"

// releaseEnv is the environment of the go command for a release. It overrides the
// settings of the user.
var releaseEnv = []string{
	"GOENV=off", // ignore the settings of go env -w
	"GOTOOLCHAIN=" + Toolchain, "GOROOT=", "GOFLAGS=", "GODEBUG=", "GOEXPERIMENT=", "GOFIPS140=off", "GOCACHEPROG=", "GO_EXTLINK_ENABLED=",
	"GOOS=linux", "GOAMD64=v1", "GOARM64=v8.0",
	"CGO_ENABLED=0", "CGO_CFLAGS=", "CGO_CPPFLAGS=", "CGO_CXXFLAGS=", "CGO_FFLAGS=", "CGO_LDFLAGS=",
	"AR=", "CC=", "CXX=", "FC=", "PKG_CONFIG=", "PKG_CONFIG_PATH=",
	"CPATH=", "C_INCLUDE_PATH=", "LIBRARY_PATH=",
}

// sourceEnv returns the variables that say where the go command fetches and keeps
// modules, including those set with go env -w. They cannot change a release, because
// modules have checksums.
func sourceEnv(ctx context.Context) ([]string, error) {
	names := []string{
		"GOPROXY", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOSUMDB", "GOINSECURE", "GOVCS", "GOAUTH",
		"GOPATH", "GOMODCACHE", "GOCACHE", "GOTMPDIR",
	}
	dt, err := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, errors.Wrap(err, "go env")
	}
	values := strings.Split(strings.TrimSuffix(string(dt), "\n"), "\n")
	if len(values) != len(names) {
		return nil, errors.Errorf("go env has %d values for %d names", len(values), len(names))
	}
	for i, name := range names {
		values[i] = name + "=" + values[i]
	}
	return values, nil
}

// Builder builds binaries for a platform.
type Builder struct {
	Arch    string
	Dir     string // for the binaries
	Work    string // for the libraries to link
	Archive *apt.Archive
	Env     []string // added to the environment of the go command
}

// Build builds a package of the module in dir.
func (b *Builder) Build(ctx context.Context, dir, pkg, name, ldflags string, env ...string) error {
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	env, err := b.goEnv(ctx, env)
	if err != nil {
		return err
	}
	return gomod.Build(ctx, dir, pkg, filepath.Join(b.Dir, name), "-buildid= "+ldflags, env)
}

// goEnv returns the environment of the go command.
func (b *Builder) goEnv(ctx context.Context, env []string) ([]string, error) {
	source, err := sourceEnv(ctx)
	return slices.Concat(releaseEnv, source, []string{"GOARCH=" + b.Arch}, b.Env, env), err
}

// BuildEngine builds the programs of the Docker engine. It links their parts in C only
// with the C library of the machine.
func (b *Builder) BuildEngine(ctx context.Context, src *engine.Source, revision string) error {
	for _, c := range engine.Commands {
		var cgo []string
		if c.CGo {
			triplet := Architectures[b.Arch]
			cgo = []string{"CGO_ENABLED=1", "CC=" + triplet + "-gcc", "CGO_CFLAGS=-O2", "CGO_LDFLAGS=-O2", "LIBRARY_PATH=/usr/lib/" + triplet}
		}
		env, err := b.goEnv(ctx, cgo)
		if err != nil {
			return err
		}
		err = gomod.Build(ctx, src.Dir, "./cmd/"+c.Name, filepath.Join(b.Dir, c.Name), "-buildid= "+src.LDFlags(revision), env, "-tags", engine.BuildTags)
		if err != nil {
			return err
		}
	}
	return nil
}

// BuildComponent builds a component, and returns the packages of Debian that it links
// into the binary.
func (b *Builder) BuildComponent(ctx context.Context, c Component) ([]apt.Package, error) {
	src, err := c.Module.Download(ctx)
	if err != nil {
		return nil, err
	}
	if !c.cgo {
		return nil, b.Build(ctx, src, c.pkg, c.Name, "")
	}
	sysroot, pkgs, err := b.sysroot(ctx)
	if err != nil {
		return nil, err
	}
	return pkgs, b.buildStatic(ctx, src, c.pkg, c.Name, sysroot)
}

// buildStatic builds a package with parts in C. It links the libraries in sysroot and
// the C library of the machine.
func (b *Builder) buildStatic(ctx context.Context, dir, pkg, name, sysroot string) error {
	triplet := Architectures[b.Arch]
	lib := filepath.Join(sysroot, "usr", "lib", triplet)
	return b.Build(ctx, dir, pkg, name, "-linkmode external -extldflags -static",
		"CGO_ENABLED=1", "CC="+triplet+"-gcc",
		"CGO_CFLAGS=-O2 -I"+filepath.Join(sysroot, "usr", "include"),
		"CGO_LDFLAGS=-O2 -L"+lib,
		"LIBRARY_PATH="+lib, // must not be empty, which means the current folder
		"PKG_CONFIG_LIBDIR="+filepath.Join(lib, "pkgconfig"),
		"PKG_CONFIG_SYSROOT_DIR="+sysroot,
	)
}

// seccomp is the package of Debian with the library for runc.
const seccomp = "libseccomp-dev"

// sysroot unpacks the libraries for runc.
func (b *Builder) sysroot(ctx context.Context) (string, []apt.Package, error) {
	pkgs, err := b.Archive.Resolve(ctx, []string{seccomp}, nil)
	if err != nil {
		return "", nil, err
	}
	pkgs = slices.DeleteFunc(pkgs, func(p apt.Package) bool { return p.Name != seccomp })
	debs, err := b.Archive.Fetch(ctx, pkgs)
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(b.Work, "sysroot", b.Arch)
	if err := files.Empty(dir); err != nil {
		return "", nil, err
	}
	return dir, pkgs, apt.Unpack(ctx, dir, debs...)
}
