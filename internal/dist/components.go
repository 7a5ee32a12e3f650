package dist

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/debian"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// Architectures are those that are distributed, with the triplet of their
// compiler for C.
var Architectures = map[string]string{
	"amd64": "x86_64-linux-gnu",
	"arm64": "aarch64-linux-gnu",
}

// Component is a binary of another project that BuildKit's own archive or image
// has.
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

// Components are built from the Go modules of their projects. BuildKit's
// emulators (buildkit-qemu-*) are not among them: they are not Go.
var Components = []Component{
	{Name: "buildkit-runc", Module: runc, pkg: ".", cgo: true},
	{Name: "buildkit-cni-bridge", Module: cniPlugins, pkg: "./plugins/main/bridge"},
	{Name: "buildkit-cni-loopback", Module: cniPlugins, pkg: "./plugins/main/loopback"},
	{Name: "buildkit-cni-host-local", Module: cniPlugins, pkg: "./plugins/ipam/host-local"},
	{Name: "buildkit-cni-firewall", Module: cniPlugins, pkg: "./plugins/meta/firewall"},
	{Name: "rootlesskit", Module: rootlesskit, pkg: "./cmd/rootlesskit", Image: true},
}

// releaseEnv is the environment of the go command for a release: what a user
// has set must not get into it.
var releaseEnv = []string{"GOFLAGS=", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0", "GOOS=linux", "CGO_ENABLED=0"}

// Builder builds binaries for a platform.
type Builder struct {
	Arch    string
	Dir     string // for the binaries
	Work    string // for what they are linked with
	Archive *debian.Archive
	Env     []string // added to the environment of the go command
}

// Build builds a package of the module in dir.
func (b *Builder) Build(ctx context.Context, dir, pkg, name, ldflags string, env ...string) error {
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	return gomod.Build(ctx, dir, pkg, filepath.Join(b.Dir, name), "-buildid= "+ldflags,
		slices.Concat(releaseEnv, []string{"GOARCH=" + b.Arch}, b.Env, env))
}

// BuildComponent builds a component, and returns the packages of Debian that
// are linked into it.
func (b *Builder) BuildComponent(ctx context.Context, c Component) ([]debian.Package, error) {
	src, err := c.Module.Download(ctx)
	if err != nil {
		return nil, err
	}
	if !c.cgo {
		return nil, b.Build(ctx, src, c.pkg, c.Name, "")
	}
	env, pkgs, err := b.cgoEnv(ctx)
	if err != nil {
		return nil, err
	}
	return pkgs, b.Build(ctx, src, c.pkg, c.Name, "-linkmode external -extldflags -static", env...)
}

// CachedComponent builds a component, unless the file is in the folder cache,
// and copies it to the binaries.
func (b *Builder) CachedComponent(ctx context.Context, c Component, cache string) error {
	file := filepath.Join(cache, c.Name+"-"+c.Module.Version+"-"+b.Arch)
	if _, err := os.Stat(file); err != nil {
		if _, err := b.BuildComponent(ctx, c); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(b.Dir, c.Name), file, 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	return copyFile(file, filepath.Join(b.Dir, c.Name), 0o755)
}

// cgoEnv is the environment for a static binary with libseccomp.
func (b *Builder) cgoEnv(ctx context.Context) ([]string, []debian.Package, error) {
	const lib = "libseccomp-dev"
	pkgs, err := b.Archive.Resolve(ctx, []string{lib}, nil)
	if err != nil {
		return nil, nil, err
	}
	pkgs = slices.DeleteFunc(pkgs, func(p debian.Package) bool { return p.Name != lib })
	files, err := b.Archive.Fetch(ctx, pkgs)
	if err != nil {
		return nil, nil, err
	}
	sysroot := filepath.Join(b.Work, "sysroot", b.Arch)
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return nil, nil, errors.WithStack(err)
	}
	if err := debian.Unpack(ctx, sysroot, files...); err != nil {
		return nil, nil, err
	}
	triplet := Architectures[b.Arch]
	lib64 := filepath.Join(sysroot, "usr", "lib", triplet)
	return []string{
		"CGO_ENABLED=1", "CC=" + triplet + "-gcc",
		"CGO_CFLAGS=-O2 -I" + filepath.Join(sysroot, "usr", "include"),
		"CGO_LDFLAGS=-O2 -L" + lib64,
		"PKG_CONFIG_LIBDIR=" + filepath.Join(lib64, "pkgconfig"),
		"PKG_CONFIG_SYSROOT_DIR=" + sysroot,
	}, pkgs, nil
}
