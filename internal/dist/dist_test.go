package dist

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/debian"
	"github.com/stretchr/testify/require"
)

var epoch = time.Unix(1_700_000_000, 0)

// fixture writes files in one order, with one time and mode on disk.
func fixture(t *testing.T, reverse bool, mtime time.Time, mode os.FileMode) []File {
	t.Helper()
	dir := t.TempDir()
	var files []File
	for _, name := range []string{"bin/buildkitd", "bin/buildctl", "lib/systemd/system/buildkit.socket"} {
		path := filepath.Join(dir, filepath.Base(name))
		require.NoError(t, os.WriteFile(path, []byte("content of "+name), mode))
		require.NoError(t, os.Chtimes(path, mtime, mtime))
		files = append(files, File{Name: name, Path: path, Mode: 0o755})
	}
	files = append(files, File{Name: "share/doc/LICENSE", Data: []byte("license"), Mode: 0o644})
	if reverse {
		slices.Reverse(files)
	}
	return files
}

// TestArchiveTwice has two archives of the same files be identical, although
// they are found in another folder and order, at another time and with other
// modes.
func TestArchiveTwice(t *testing.T) {
	t.Parallel()
	var first, second bytes.Buffer
	require.NoError(t, WriteArchive(&first, fixture(t, false, time.Now(), 0o600), epoch))
	require.NoError(t, WriteArchive(&second, fixture(t, true, epoch.Add(time.Hour), 0o755), epoch))
	require.Equal(t, first.Bytes(), second.Bytes())

	var later bytes.Buffer
	require.NoError(t, WriteArchive(&later, fixture(t, false, time.Now(), 0o600), epoch.Add(time.Second)))
	require.NotEqual(t, first.Bytes(), later.Bytes(), "the epoch is in the archive")
}

func TestArchiveContent(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	require.NoError(t, WriteArchive(&buf, fixture(t, true, time.Now(), 0o600), epoch))
	zr, err := gzip.NewReader(&buf)
	require.NoError(t, err)
	tr := tar.NewReader(zr)
	var names []string
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		names = append(names, hdr.Name)
		require.True(t, hdr.ModTime.Equal(epoch), "%s has time %s", hdr.Name, hdr.ModTime)
		require.Equal(t, [2]int{0, 0}, [2]int{hdr.Uid, hdr.Gid})
		if hdr.Name == "bin/buildctl" {
			require.Equal(t, int64(0o755), hdr.Mode)
			dt, err := io.ReadAll(tr)
			require.NoError(t, err)
			require.Equal(t, "content of bin/buildctl", string(dt))
		}
	}
	require.Equal(t, []string{
		"bin/", "bin/buildctl", "bin/buildkitd", "lib/", "lib/systemd/", "lib/systemd/system/",
		"lib/systemd/system/buildkit.socket", "share/", "share/doc/", "share/doc/LICENSE",
	}, names)
}

func TestArchiveRefuses(t *testing.T) {
	t.Parallel()
	for _, files := range [][]File{
		{{Name: "../buildkitd"}},
		{{Name: "/bin/buildkitd"}},
		{{Name: "bin//buildkitd"}},
		{{Name: "bin/buildkitd"}, {Name: "bin/buildkitd"}},
		{{Name: "bin/buildkitd", Path: "/no/such/file"}},
	} {
		require.Error(t, WriteArchive(io.Discard, files, epoch), "%v", files)
	}
}

func TestChecksums(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b", "a"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	dt, err := Checksums(dir, []string{"b", "a"})
	require.NoError(t, err)
	require.Equal(t, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a\n3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d  b\n", string(dt))
}

// TestSBOM lists a small command of this repository as the binary of an
// archive.
func TestSBOM(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "firstkey")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "github.com/graphload/graphload/integration/testbed/firstkey").CombinedOutput()
	require.NoError(t, err, "%s", out)
	c := Contents{
		Name: "archive.tar.gz", Version: "v1", Revision: "abc", Created: epoch,
		Binaries: []Binary{{Name: "bin/buildkitd", Path: bin, Version: "v1"}},
		Packages: []debian.Package{{Name: "git", Version: "1:2-1", Arch: "arm64", URL: "http://deb/git.deb", SHA256: "aa"}},
	}
	dt, err := SBOM(c)
	require.NoError(t, err)
	again, err := SBOM(c)
	require.NoError(t, err)
	require.Equal(t, string(dt), string(again))

	doc, err := ReadSBOM(dt)
	require.NoError(t, err)
	require.Equal(t, "2023-11-14T22:13:20Z", doc.CreationInfo.Created)
	var purls []string
	for _, p := range doc.Packages {
		for _, ref := range p.PackageExternalReferences {
			purls = append(purls, ref.Locator)
		}
	}
	require.Contains(t, purls, "pkg:golang/github.com/graphload/graphload@v1")
	require.True(t, slices.ContainsFunc(purls, func(s string) bool { return strings.HasPrefix(s, "pkg:golang/golang.org/x/crypto@v") }), "%v", purls)
	require.Contains(t, purls, "pkg:deb/debian/git@1%3A2-1?arch=arm64&distro=debian-12")

	c.Packages[0].SHA256 = "bb"
	other, err := SBOM(c)
	require.NoError(t, err)
	changed, err := ReadSBOM(other)
	require.NoError(t, err)
	require.NotEqual(t, doc.DocumentNamespace, changed.DocumentNamespace, "another content has another namespace")
}

func TestProvenance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o600))
	b := Build{
		Parameters:   map[string]any{"upstream": "v0.34.2"},
		Internal:     map[string]any{"go": "go1.26"},
		Dependencies: []Dependency{{Name: "buildkit", URI: "pkg:golang/github.com/moby/buildkit@v0.34.2", Digest: map[string]string{"sha256": sha256Hex(nil)}}},
	}
	dt, err := Provenance(dir, []string{"a"}, b)
	require.NoError(t, err)
	for range 20 { // the encoder of protobuf varies
		again, err := Provenance(dir, []string{"a"}, b)
		require.NoError(t, err)
		require.Equal(t, string(dt), string(again))
	}
	var st struct {
		Type          string `json:"_type"`
		PredicateType string
		Subject       []struct {
			Name   string
			Digest map[string]string
		}
		Predicate struct {
			BuildDefinition struct {
				ExternalParameters   map[string]string
				ResolvedDependencies []struct{ URI string }
			}
		}
	}
	require.NoError(t, json.Unmarshal(dt, &st))
	require.Equal(t, "https://in-toto.io/Statement/v1", st.Type)
	require.Equal(t, "https://slsa.dev/provenance/v1", st.PredicateType)
	require.Equal(t, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb", st.Subject[0].Digest["sha256"])
	require.Equal(t, "v0.34.2", st.Predicate.BuildDefinition.ExternalParameters["upstream"])
	require.Equal(t, "pkg:golang/github.com/moby/buildkit@v0.34.2", st.Predicate.BuildDefinition.ResolvedDependencies[0].URI)
}
