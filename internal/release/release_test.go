package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

// TestRemoveRelease removes a release, complete or not, and requires that other files
// stay.
func TestRemoveRelease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept := []string{"buildkit-v0.34.2.linux-amd64.tar.gz", "docker-29.0.0.tgz", "notes.txt"}
	for _, file := range append([]string{
		"SHA256SUMS", "buildkit-v0.34.2+graphload.linux-amd64.tar.gz", "buildkit-v0.33.1+graphload.oci.tar", "buildkit-v0.34.2+graphload.spdx.json.tmp",
		"docker-2.0.0-beta.24+graphload.linux-amd64.tgz",
	}, kept...) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), nil, 0o600))
	}
	require.NoError(t, removeRelease(dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	require.Equal(t, kept, left)
}

// TestWriteArchive writes an archive of binaries that are all the same small command.
// The archive must have licenses, and the bill of materials must list the packages
// linked into a binary.
func TestWriteArchive(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	images, err := NewImageContext(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(images.BinDir("amd64"), 0o755))
	for _, file := range append([]string{"buildkitd", "buildctl"}, componentNames()...) {
		path := filepath.Join(images.BinDir("amd64"), file)
		require.NoError(t, gomod.Build(t.Context(), root, "./internal/testbed/firstkey", path, "", []string{"CGO_ENABLED=0"}))
	}
	d := &Release{
		opt: assemble.Options{Root: root, Version: "v0.34.2"}, dir: t.TempDir(), images: images, epoch: time.Unix(1_700_000_000, 0),
		licenses: []File{{Name: LicenseDir + "LICENSE.runc", Data: []byte("license of runc")}},
		linked:   map[string][]apt.Package{"amd64": {{Name: "libseccomp-dev", Version: "2.5.4-1", Arch: "amd64", URL: "http://deb/libseccomp.deb", SHA256: "aa"}}},
	}
	require.NoError(t, d.writeArchive("amd64"))
	require.Equal(t, []string{"buildkit-v0.34.2+graphload.linux-amd64.tar.gz", "buildkit-v0.34.2+graphload.linux-amd64.tar.gz.spdx.json"}, d.names)

	out, err := exec.CommandContext(t.Context(), "tar", "-xOzf", filepath.Join(d.dir, d.names[0]), "share/doc/graphload/LICENSE.runc").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "license of runc", string(out))
	sbom, err := os.ReadFile(filepath.Join(d.dir, d.names[1]))
	require.NoError(t, err)
	require.Contains(t, string(sbom), `"pkg:deb/debian/libseccomp-dev@2.5.4-1?arch=amd64`)
}

// TestImageName requires names for which buildx cannot pull an image of another project.
func TestImageName(t *testing.T) {
	t.Parallel()
	for _, v := range Variants {
		tag, err := name.NewTag(imageName(assemble.Options{Version: "v0.34.2"}, v))
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(tag.RegistryStr(), ".invalid"), tag.RegistryStr())
	}
}
