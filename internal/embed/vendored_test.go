package embed

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

// TestEmbedVendored embeds the tree in a program with vendored dependencies, and undoes
// that.
func TestEmbedVendored(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("fetches the modules of all platforms")
	}
	root, err := upstream.Root()
	require.NoError(t, err)
	version, err := upstream.DefaultVersion(root)
	require.NoError(t, err)
	dir := t.TempDir()
	read := func(elem ...string) string {
		dt, err := os.ReadFile(filepath.Join(elem...))
		require.NoError(t, err)
		return string(dt)
	}
	gomod := "module example.com/program\n\ngo 1.26.0\n\nrequire " + upstream.Module + " " + version + "\n"
	for name, content := range map[string]string{
		"go.mod":  gomod,
		"go.sum":  read(root, "go.sum"),
		"main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"" + upstream.Module + "/session\"\n)\n\nfunc main() { fmt.Println(session.NewManager()) }\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		dt, err := cmd.CombinedOutput()
		require.NoError(t, err, "go %s: %s", strings.Join(args, " "), dt)
		return string(dt)
	}
	run("mod", "tidy")
	tidy := read(dir, "go.mod")
	run("mod", "vendor")
	vendored := filepath.Join(dir, "vendor", filepath.FromSlash(upstream.Module))
	require.NoFileExists(t, filepath.Join(vendored, "session", "any.go"))

	var out bytes.Buffer
	tree, err := Embed(t.Context(), &out, root, dir)
	require.NoError(t, err)
	require.Contains(t, out.String(), "go mod vendor")
	require.Contains(t, out.String(), tree.Dir+", an absolute path")
	run("mod", "vendor")
	require.Equal(t, read(root, "session", "any.go"), read(vendored, "session", "any.go"))
	compared := 0
	for rel, dt := range tree.Changed {
		if filepath.Dir(rel) == "session" {
			compared++
			require.Equal(t, string(dt), read(vendored, rel), rel)
		}
	}
	require.NotZero(t, compared)
	// the go command finds vendor consistent with go.mod; other tests compile the tree
	require.Contains(t, run("list", "-mod=vendor", "-deps", "."), upstream.Module+"/session\n")

	require.NoError(t, Revert(&out, dir))
	require.Equal(t, tidy, read(dir, "go.mod"))
}
