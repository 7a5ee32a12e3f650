package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/testutil"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/stretchr/testify/require"
)

var epoch = time.Unix(1_700_000_000, 0)

// fixture writes files with the given time and mode, and returns them in one order or
// in reverse.
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

// TestArchiveTwice requires that two archives of the same files are identical, although
// the files have another folder, order, time and mode on disk.
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

// TestReleaseEnv builds twice, the second time with an environment that would change
// the binary if it had an effect.
func TestReleaseEnv(t *testing.T) {
	src := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":     "module example.com/m\n\ngo 1.26\n",
		"pure/m.go":  "package main\n\nimport _ \"crypto/sha256\"\n\nfunc main() { println(1) }\n",
		"cgo/m.go":   "package main\n\n/*\n#if __has_include(<user.h>) || defined(USER)\nint v = 1;\n#else\nint v = 0;\n#endif\n*/\nimport \"C\"\n\nfunc main() { println(C.v) }\n",
		"inc/user.h": "",
		"goenv":      "GOFLAGS=-gcflags=all=-N\nGOAMD64=v3\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(src, name), []byte(content), 0o600))
	}
	build := func() (sums []string) {
		b := &Builder{Arch: runtime.GOARCH, Dir: t.TempDir()}
		require.NoError(t, b.Build(t.Context(), src, "./pure", "pure", ""))
		require.NoError(t, b.buildStatic(t.Context(), src, "./cgo", "cgo", t.TempDir()))
		for _, name := range []string{"pure", "cgo"} {
			sum, err := files.SHA256(filepath.Join(b.Dir, name))
			require.NoError(t, err)
			sums = append(sums, sum)
		}
		return sums
	}
	testutil.RequireCommand(t, Architectures[runtime.GOARCH]+"-gcc")
	first := build()
	for name, value := range map[string]string{
		"GOENV": filepath.Join(src, "goenv"), "GOFLAGS": "-race", "GOEXPERIMENT": "fieldtrack", "GOFIPS140": "latest", "GOAMD64": "v2", "GODEBUG": "gotypesalias=0",
		"CGO_CPPFLAGS": "-DUSER", "CGO_LDFLAGS": "-Wl,--build-id=0x1234", "CPATH": filepath.Join(src, "inc"), "CC": "false", "PKG_CONFIG": "false", "GO_EXTLINK_ENABLED": "1",
	} {
		t.Setenv(name, value)
	}
	require.Equal(t, first, build())
}

// TestImageContext requires that a context has no files of an earlier build.
func TestImageContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	left := filepath.Join(dir, "amd64", "bin", "buildkitd.tmp")
	require.NoError(t, os.MkdirAll(filepath.Dir(left), 0o755))
	require.NoError(t, os.WriteFile(left, nil, 0o600))
	c, err := NewImageContext(dir)
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)

	require.NoError(t, c.AddLicenses([]File{{Name: "share/doc/graphload/LICENSE.runc", Data: []byte("license")}}))
	dt, err := os.ReadFile(filepath.Join(dir, "licenses", "LICENSE.runc"))
	require.NoError(t, err)
	require.Equal(t, "license", string(dt))
}

func TestLicenseFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := LicenseFiles("runc", dir)
	require.ErrorContains(t, err, "no license")
	for _, name := range []string{"LICENSE", "NOTICE.md", "Copying", "README.md", "license.go"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "LICENSES"), 0o755))
	files, err := LicenseFiles("runc", dir)
	require.NoError(t, err)
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
		require.FileExists(t, f.Path)
	}
	require.ElementsMatch(t, []string{"share/doc/graphload/LICENSE.runc", "share/doc/graphload/NOTICE.md.runc", "share/doc/graphload/Copying.runc"}, names)
}

// TestSBOM writes the bill of materials of an archive whose only binary is a small
// command of this repository.
func TestSBOM(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "firstkey")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "github.com/graphload/graphload/internal/testbed/firstkey").CombinedOutput()
	require.NoError(t, err, "%s", out)
	c := Contents{
		Name: "archive.tar.gz", Version: "v1", Revision: "abc", Created: epoch,
		Binaries: []Binary{{Name: "bin/buildkitd", Path: bin, Version: "v1"}},
		Packages: []apt.Package{{Name: "git", Version: "1:2-1", Arch: "arm64", URL: "http://deb/git.deb", SHA256: "aa"}},
	}
	dt, err := SBOM(c)
	require.NoError(t, err)
	again, err := SBOM(c)
	require.NoError(t, err)
	require.Equal(t, string(dt), string(again))

	doc, err := spdxjson.Read(bytes.NewReader(dt))
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
	changed, err := spdxjson.Read(bytes.NewReader(other))
	require.NoError(t, err)
	require.NotEqual(t, doc.DocumentNamespace, changed.DocumentNamespace, "another content has another namespace")
}
