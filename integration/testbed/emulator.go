package testbed

import (
	"context"
	"os"
	"path/filepath"
	"runtime"

	"github.com/graphload/graphload/internal/debian"
	"github.com/pkg/errors"
)

// WriteEmulator puts Debian's qemu into dir under the name that a daemon with
// dir in its PATH looks for to run steps of linux/arm64.
func WriteEmulator(ctx context.Context, dir string) error {
	return copyFromPackage(ctx, runtime.GOARCH, "qemu-user-static", "usr/bin/qemu-aarch64-static", filepath.Join(dir, "buildkit-qemu-aarch64"))
}

// WriteARM64Shell writes Debian's busybox for arm64 to dir, as /bin/sh. An
// emulated shell can run its own commands only.
func WriteARM64Shell(ctx context.Context, dir string) error {
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return errors.WithStack(err)
	}
	return copyFromPackage(ctx, "arm64", "busybox-static", "bin/busybox", filepath.Join(bin, "sh"))
}

// copyFromPackage copies a file of a Debian package.
func copyFromPackage(ctx context.Context, arch, name, file, dst string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return errors.WithStack(err)
	}
	a, err := debian.Open(ctx, filepath.Join(cache, "graphload", "debian"), arch, debian.DefaultMirror)
	if err != nil {
		return err
	}
	pkgs, err := a.Resolve(ctx, []string{name}, nil)
	if err != nil {
		return err
	}
	for _, pkg := range pkgs {
		if pkg.Name != name {
			continue
		}
		files, err := a.Fetch(ctx, []debian.Package{pkg})
		if err != nil {
			return err
		}
		temp, err := os.MkdirTemp("", "graphload-package-")
		if err != nil {
			return errors.WithStack(err)
		}
		defer os.RemoveAll(temp)
		if err := debian.Unpack(ctx, temp, files...); err != nil {
			return err
		}
		return copyFile(filepath.Join(temp, file), dst, 0o755)
	}
	return errors.Errorf("no package %s for %s", name, arch)
}
