package testbed

import (
	"context"
	"os"
	"path/filepath"
	"runtime"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
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
	a, err := debianArchive(ctx, arch)
	if err != nil {
		return err
	}
	pkgs, err := a.Resolve(ctx, []string{name}, nil)
	if err != nil {
		return err
	}
	debs, err := a.Fetch(ctx, pkgs)
	if err != nil {
		return err
	}
	temp, err := tempDir("graphload-package-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := apt.Unpack(ctx, temp, debs...); err != nil {
		return err
	}
	return files.Copy(filepath.Join(temp, file), dst, 0o755)
}
