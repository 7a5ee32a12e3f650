package engine

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

// TestPrepare checks that the copy equals the module, except for the lines that embed
// adds to its go.mod, and that a second Prepare starts afresh.
func TestPrepare(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches the Docker engine")
	}
	root, err := upstream.Root()
	require.NoError(t, err)
	unmodified, err := Unmodified(t.Context(), root, DefaultVersion)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(DefaultVersion, "v"), unmodified.DockerVersion())
	require.NotContains(t, unmodified.LDFlags("abc"), "graphload")

	for range 2 {
		src, err := Prepare(t.Context(), root, DefaultVersion)
		require.NoError(t, err)
		require.Equal(t, strings.TrimPrefix(DefaultVersion, "v")+"+graphload", src.DockerVersion())
		require.NoDirExists(t, src.Dir+".tmp")
		require.NoFileExists(t, filepath.Join(src.Dir, "stray.go"))
		require.NoError(t, os.WriteFile(filepath.Join(src.Dir, "stray.go"), []byte("package stray"), 0o600))
		defer os.Remove(filepath.Join(src.Dir, "stray.go"))

		dt, err := os.ReadFile(filepath.Join(src.Dir, "go.mod"))
		require.NoError(t, err)
		f, err := modfile.Parse("go.mod", dt, nil)
		require.NoError(t, err)
		require.Len(t, f.Replace, 1)
		require.Equal(t, "../"+src.BuildKit, f.Replace[0].New.Path)
		require.FileExists(t, filepath.Join(src.Dir, f.Replace[0].New.Path, "solver", "owners.go"))
	}
}

// TestFlags compares the flags with those of the engine's own build, and so fails for a
// release that changes them.
func TestFlags(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("fetches the Docker engine")
	}
	root, err := upstream.Root()
	require.NoError(t, err)
	src, err := Unmodified(t.Context(), root, DefaultVersion)
	require.NoError(t, err)
	read := func(name string) string {
		dt, err := os.ReadFile(filepath.Join(src.Dir, "hack", name))
		require.NoError(t, err)
		return string(dt)
	}
	script := read("make.sh")
	require.Contains(t, script, `-tags "`+BuildTags+` $DOCKER_BUILDTAGS"`)
	require.Contains(t, script, "\tLDFLAGS='-w'\n")
	require.Contains(t, script, `LDFLAGS_STATIC="-extldflags -static"`)
	for name, line := range map[string]string{"daemon": "GO_PACKAGE='" + Module + "/cmd/dockerd'", "proxy": "export CGO_ENABLED=0"} {
		require.Contains(t, read("make/binary-"+name), line)
	}
	ldflags := src.LDFlags("")
	for _, m := range regexp.MustCompile(`-X \\"(\S+)=\$\{(\w+)\}`).FindAllStringSubmatch(read("make/.go-autogen"), -1) {
		switch m[2] {
		case "VERSION", "GITCOMMIT", "BUILDTIME":
			require.Contains(t, ldflags, "-X "+m[1]+"=")
		case "PLATFORM", "PRODUCT", "DEFAULT_PRODUCT_LICENSE": // only for packages
			require.NotContains(t, ldflags, m[1])
		default:
			t.Errorf("%s is new", m[1])
		}
	}
	require.Contains(t, ldflags, "BuildTime="+src.time.UTC().Format("2006-01-02T15:04:05")+".000000000+00:00")
	require.True(t, src.time.After(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
}

func TestVersions(t *testing.T) {
	t.Parallel()
	s := &Source{Version: "v2.0.1", BuildKit: "v0.33.0", Embedded: true}
	flags := s.LDFlags("abc")
	for _, want := range []string{
		"dockerversion.Version=2.0.1+graphload ", "dockerversion.GitCommit=v2.0.1 ",
		"buildkit/version.Version=v0.33.0+graphload ", "version.Package=github.com/graphload/graphload ", "version.Revision=abc",
	} {
		require.Contains(t, flags+" ", want)
	}
}

func TestNotSupported(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("fetches a Docker engine")
	}
	root, err := upstream.Root()
	require.NoError(t, err)
	_, err = Prepare(t.Context(), root, "v2.0.0-beta.20")
	require.ErrorContains(t, err, "Docker engine v2.0.0-beta.20 requires BuildKit v0.32.0, which is not supported. Supported: v0.34.2, ")
	require.NoDirExists(t, filepath.Join(root, "build", "moby-v2.0.0-beta.20"))
	_, err = Unmodified(t.Context(), root, "latest")
	require.ErrorContains(t, err, "give the version in full")
}
