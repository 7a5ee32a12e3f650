package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

// TestWriteEngineArchive writes an archive of an engine whose programs are all the same
// small command.
func TestWriteEngineArchive(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	b := &Builder{Arch: "arm64", Dir: t.TempDir()}
	build := func(arch string) {
		for _, c := range engine.Commands {
			require.NoError(t, gomod.Build(t.Context(), root, "./internal/testbed/firstkey", filepath.Join(b.Dir, c.Name), "", []string{"CGO_ENABLED=0", "GOARCH=" + arch}))
		}
	}
	d := &Release{opt: assemble.Options{Root: root}, dir: t.TempDir(), epoch: time.Unix(1_700_000_000, 0)}
	src := &engine.Source{Version: "v2.1.0", Embedded: true}
	licenses := []File{{Name: LicenseDir + "LICENSE.moby", Data: []byte("license of the engine")}}

	build("amd64")
	require.ErrorContains(t, d.writeEngineArchive(src, b, licenses), "not for arm64")
	require.Empty(t, d.names)
	build("arm64")
	require.NoError(t, d.writeEngineArchive(src, b, licenses))
	require.Equal(t, []string{"docker-2.1.0+graphload.linux-arm64.tgz", "docker-2.1.0+graphload.linux-arm64.tgz.spdx.json"}, d.names)
	out, err := exec.CommandContext(t.Context(), "tar", "-tzf", filepath.Join(d.dir, d.names[0])).CombinedOutput()
	require.NoError(t, err)
	for _, name := range []string{"lib/graphload/dockerd", "lib/graphload/docker-proxy", "share/doc/graphload/LICENSE.moby"} {
		require.Contains(t, strings.Split(string(out), "\n"), name)
	}
	require.NotContains(t, string(out), "bin/")
	sbom, err := os.ReadFile(filepath.Join(d.dir, d.names[1]))
	require.NoError(t, err)
	require.Contains(t, string(sbom), `"lib/graphload/dockerd"`)
}

// TestSBOMReplaced builds a program whose go.mod replaces BuildKit by a folder. The bill
// of materials must list BuildKit with a version that differs from upstream's.
func TestSBOMReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":       "module example.com/program\n\ngo 1.26\n\nrequire github.com/moby/buildkit v0.33.0\n\nreplace github.com/moby/buildkit => ./tree\n",
		"main.go":      "package main\n\nimport _ \"github.com/moby/buildkit\"\n\nfunc main() {}\n",
		"tree/go.mod":  "module github.com/moby/buildkit\n\ngo 1.26\n",
		"tree/tree.go": "package buildkit\n",
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	path := filepath.Join(dir, "program")
	require.NoError(t, gomod.Build(t.Context(), dir, ".", path, "", []string{"CGO_ENABLED=0"}))
	sbom, err := SBOM(Contents{Name: "a.tgz", Binaries: []Binary{{Name: "program", Path: path, Version: "v1"}}})
	require.NoError(t, err)
	require.Contains(t, string(sbom), `"pkg:golang/github.com/moby/buildkit@v0.33.0+graphload"`)
	require.NotContains(t, string(sbom), "./tree")
}
