package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

// TestPatchVendored runs the commands of docs/embedding.md for the program of the
// example with a vendored copy of upstream's module. It does not compile the program,
// which would compile all of BuildKit. It only checks that the patched files are those
// of the assembled tree, which other tests compile and test, and that the go command
// finds their imports.
func TestPatchVendored(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("fetches the modules of all platforms")
	}
	root, err := upstream.Root()
	require.NoError(t, err)
	version, err := upstream.DefaultVersion(root)
	require.NoError(t, err)
	tree, err := assemble.Plan(t.Context(), assemble.Options{Root: root, Version: version})
	require.NoError(t, err)
	patch, err := tree.Patch()
	require.NoError(t, err)

	read := func(elem ...string) string {
		dt, err := os.ReadFile(filepath.Join(elem...))
		require.NoError(t, err)
		return string(dt)
	}
	_, docs, ok := strings.Cut(read(root, "docs", "embedding.md"), "## Through the patch on a vendored copy\n\n```console\n")
	require.True(t, ok)
	docs, _, _ = strings.Cut(docs, "```")
	first, commands, _ := strings.Cut(docs, "\n") // graphload patch
	require.Contains(t, first, "./cmd/graphload patch) > graphload.patch")
	require.Equal(t, 3, strings.Count(commands, "$ "), commands)
	commands = regexp.MustCompile(`(?m)^\$ `).ReplaceAllString(commands, "")

	dir := t.TempDir()
	embed := filepath.Join(root, "examples", "embed")
	gomod := regexp.MustCompile(`(?m)^replace .*\n`).ReplaceAllString(read(embed, "go.mod"), "")
	gosum := read(embed, "go.sum")
	for line := range strings.Lines(read(root, "go.sum")) {
		if strings.HasPrefix(line, upstream.Module+" ") {
			gosum += line
		}
	}
	for name, content := range map[string]string{
		"go.mod": gomod, "go.sum": gosum, "server.go": read(embed, "server.go"), "graphload.patch": string(patch),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		dt, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", dt)
		return string(dt)
	}
	run("sh", "-e", "-c", commands)

	vendored := filepath.Join(dir, "vendor", filepath.FromSlash(upstream.Module))
	leftOut := func(rel string) bool {
		return strings.HasSuffix(rel, "_test.go") || strings.HasPrefix(rel, "cmd/buildkitd/") || strings.HasPrefix(rel, "solver/debuggraph/") || strings.HasPrefix(rel, "session/sessiontest/")
	}
	for rel, dt := range tree.Changed {
		if !leftOut(rel) {
			require.Equal(t, string(dt), read(vendored, rel), rel)
		}
	}
	for _, rel := range tree.Added {
		if leftOut(rel) {
			require.NoFileExists(t, filepath.Join(vendored, rel))
		} else {
			require.Equal(t, read(root, rel), read(vendored, rel), rel)
		}
	}
	deps := strings.Fields(run("go", "list", "-mod=vendor", "-deps", "."))
	require.Contains(t, deps, upstream.Module+"/util/graphload")
	run("go", "build", "-mod=vendor", upstream.Module+"/util/graphload")
}
