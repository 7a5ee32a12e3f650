package integration

import (
	"path/filepath"
	"runtime"
	"testing"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
	"github.com/stretchr/testify/require"
)

// writeEmulator puts Debian's qemu into dir under the name that a daemon with
// dir in its PATH looks for to run steps of linux/arm64.
func writeEmulator(t *testing.T, dir string) {
	t.Helper()
	copyFromPackage(t, runtime.GOARCH, "qemu-user-static", "usr/bin/qemu-aarch64-static", filepath.Join(dir, "buildkit-qemu-aarch64"))
}

// writeARM64Shell writes Debian's busybox for arm64 to dir, as /bin/sh. An
// emulated shell can run its own commands only.
func writeARM64Shell(t *testing.T, dir string) {
	t.Helper()
	copyFromPackage(t, "arm64", "busybox-static", "bin/busybox", filepath.Join(dir, "bin", "sh"))
}

// copyFromPackage copies a file of a Debian package.
func copyFromPackage(t *testing.T, arch, name, file, dst string) {
	t.Helper()
	dir, err := files.CacheDir("debian")
	require.NoError(t, err)
	a, err := apt.Open(t.Context(), dir, arch, apt.DefaultMirror)
	require.NoError(t, err)
	pkgs, err := a.Resolve(t.Context(), []string{name}, nil)
	require.NoError(t, err)
	debs, err := a.Fetch(t.Context(), pkgs)
	require.NoError(t, err)
	temp := t.TempDir()
	require.NoError(t, apt.Unpack(t.Context(), temp, debs...))
	require.NoError(t, files.Copy(filepath.Join(temp, file), dst, 0o755))
}
