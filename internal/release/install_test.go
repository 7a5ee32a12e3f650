package release

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

// TestInstall installs over an older binary. Uninstall must then remove all installed
// files and no others.
func TestInstall(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	bin, dest := t.TempDir(), t.TempDir()
	for _, name := range []string{"buildkitd", "buildctl"} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("new "+name), 0o600))
	}
	other := filepath.Join(dest, "opt/graphload/bin/other")
	require.NoError(t, os.MkdirAll(filepath.Dir(other), 0o755))
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(other), "buildkitd"), []byte("old"), 0o600))

	for range 2 {
		require.NoError(t, Install(root, bin, dest, "/opt/graphload/"))
	}
	dt, err := os.ReadFile(filepath.Join(dest, "opt/graphload/bin/buildkitd"))
	require.NoError(t, err)
	require.Equal(t, "new buildkitd", string(dt))
	info, err := os.Stat(filepath.Join(dest, "opt/graphload/bin/buildkitd"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode().Perm())
	unit, err := os.ReadFile(filepath.Join(dest, "opt/graphload/lib/systemd/system/buildkit.service"))
	require.NoError(t, err)
	require.Contains(t, string(unit), "\nExecStart=/opt/graphload/bin/buildkitd --addr fd://\n")

	for range 2 {
		require.NoError(t, Uninstall(root, dest, "/opt/graphload"))
	}
	var left []string
	require.NoError(t, filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return err
	}))
	require.Equal(t, []string{other}, left)

	require.Error(t, Install(root, bin, dest, "relative"))
	require.Error(t, Install(root, bin, "relative", "/opt/graphload"))
}
