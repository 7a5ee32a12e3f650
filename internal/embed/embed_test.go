package embed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/tools/txtar"
)

var served = []string{"v0.34.2", "v0.33.0"}

// releaseGoMod is the go.mod of any release in the tests.
const releaseGoMod = `module github.com/moby/buildkit

go 1.26

exclude (
	// a comment of BuildKit's
	example.com/old v1.0.0
	example.com/older v0.9.0
)
`

// TestScripts runs the scripts in testdata on a module in a temporary folder. A
// script is a txtar archive: its files are the module, and the lines before them
// are commands:
//
//	embed changed|unchanged|error TEXT
//	undo changed|unchanged
//	cmp FILE                compares go.mod with a file, with $REPO replaced
//	cp FILE                 makes the file go.mod
//	program DIR             for a module in a folder, $REPO is the repository
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			require.NoError(t, err)
			s := newScript(t, ar)
			for line := range strings.Lines(string(ar.Comment)) {
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					s.run(t, line)
				}
			}
		})
	}
}

type script struct {
	repo, dir, release string
	files              map[string]string
}

func newScript(t *testing.T, ar *txtar.Archive) *script {
	tmp, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	s := &script{repo: filepath.Join(tmp, "repo"), dir: filepath.Join(tmp, "program"), release: filepath.Join(tmp, "release"), files: map[string]string{}}
	require.NoError(t, os.Mkdir(s.repo, 0o755))
	for _, f := range ar.Files {
		s.files[f.Name] = strings.ReplaceAll(string(f.Data), "$REPO", s.repo)
	}
	write(t, filepath.Join(s.release, "go.mod"), releaseGoMod)
	s.writeProgram(t)
	return s
}

func (s *script) writeProgram(t *testing.T) {
	for name, content := range s.files {
		write(t, filepath.Join(s.dir, name), content)
	}
}

func (s *script) run(t *testing.T, line string) {
	verb, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "program":
		s.dir = strings.ReplaceAll(arg, "$REPO", s.repo)
		s.writeProgram(t)
	case "cp":
		write(t, filepath.Join(s.dir, "go.mod"), s.files[arg])
	case "cmp":
		require.Contains(t, s.files, arg)
		require.Equal(t, s.files[arg], s.goMod(t), line)
	case "embed", "undo":
		do := s.embed
		if verb == "undo" {
			do = s.undo
		}
		before := s.goMod(t)
		changed, err := do()
		if text, ok := strings.CutPrefix(arg, "error "); ok {
			require.ErrorContains(t, err, text, line)
			require.Equal(t, before, s.goMod(t), "%s: nothing is written", line)
			return
		}
		require.NoError(t, err, line)
		require.Equal(t, arg == "changed", changed, line)
		require.Equal(t, changed, before != s.goMod(t), line)
		entries, err := filepath.Glob(filepath.Join(s.dir, "go.mod?*"))
		require.NoError(t, err)
		require.Empty(t, entries, "%s: no file is left behind", line)
	default:
		t.Fatalf("unknown command %q", line)
	}
}

// goMod returns the content of the program's go.mod, or "" if there is none.
func (s *script) goMod(t *testing.T) string {
	dt, err := os.ReadFile(filepath.Join(s.dir, "go.mod"))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return string(dt)
}

// embed does the same as the command, without writing a tree.
func (s *script) embed() (bool, error) {
	p, err := Open(s.dir)
	if err != nil {
		return false, err
	}
	version, err := p.Release(served)
	if err != nil {
		return false, err
	}
	tree := &assemble.Tree{
		Options:  assemble.Options{Root: s.repo},
		Dir:      filepath.Join(s.repo, "build", version),
		Upstream: &upstream.Source{Dir: s.release},
	}
	if _, err := p.Embed(tree); err != nil {
		return false, err
	}
	return p.Write()
}

func (s *script) undo() (bool, error) {
	p, err := Open(s.dir)
	if err != nil {
		return false, err
	}
	if _, err := p.Undo(); err != nil {
		return false, err
	}
	return p.Write()
}

func write(t *testing.T, path, content string) {
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644)) //nolint:gosec
}

// TestChange checks the output of the command.
func TestChange(t *testing.T) {
	t.Parallel()
	s := newScript(t, txtar.Parse([]byte(`-- go.mod --
module example.com/program

go 1.26

require github.com/moby/buildkit v0.33.0
-- go.sum --
example.com/old v1.0.0/go.mod h1:x
-- vendor/modules.txt --
`)))
	p, err := Open(s.dir)
	require.NoError(t, err)
	require.True(t, p.Vendored)
	tree := &assemble.Tree{
		Options:  assemble.Options{Root: s.repo},
		Dir:      filepath.Join(s.repo, "build", "v0.33.0-copies"),
		Upstream: &upstream.Source{Dir: s.release},
	}
	c, err := p.Embed(tree)
	require.NoError(t, err)
	require.Equal(t, tree.Dir, c.Replace)
	require.Equal(t, "example.com/older@v0.9.0", c.Excludes[0].String())
	require.Len(t, c.Excludes, 1)
	require.Equal(t, "example.com/old@v1.0.0", c.Used[0].String())
	require.Len(t, c.Used, 1)

	require.NoError(t, os.Chmod(filepath.Join(s.dir, "go.mod"), 0o600))
	_, err = p.Write()
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(s.dir, "go.mod"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	p, err = Open(s.dir)
	require.NoError(t, err)
	removed, err := p.Undo()
	require.NoError(t, err)
	require.Equal(t, []string{"replace github.com/moby/buildkit => " + tree.Dir, "exclude example.com/older v0.9.0"}, removed)
}
