package assemble

import (
	"bytes"
	"context"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

// repository returns a small repository and a small upstream module.
func repository(t *testing.T) (Options, *upstream.Source) {
	opt := Options{Root: t.TempDir(), Version: "v1.0.0"}
	src := &upstream.Source{Version: opt.Version, Dir: t.TempDir()}
	write := func(dir, name, content string, mode fs.FileMode) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
	}
	write(src.Dir, "go.mod", "module example.com/upstream\n\ngo 1.26\n", 0o444)
	write(src.Dir, "hack/run", "#!/bin/sh\n", 0o555)
	write(src.Dir, "solver/jobs.go", "package solver\n\nfunc Discard() string { return \"upstream\" }\n", 0o444)
	write(opt.Root, "go.mod", "module example.com/repository\n\ngo 1.26\n\nignore (\n\t./build\n\t./other\n\t./solver\n)\n", 0o644)
	write(opt.Root, SeamList, "modules:\n  other: {path: example.com/other}\n", 0o644)
	write(opt.Root, "solver/owners.go", "package solver\n\nfunc Discard() string { return \"added, \" + discard() }\n", 0o644)
	write(opt.Root, "solver/owners_test.go", "package solver\n\nimport \"testing\"\n\nfunc TestDiscard(t *testing.T) {\n\tif Discard() != \"added, upstream\" {\n\t\tt.Fatal(Discard())\n\t}\n}\n", 0o644)
	return opt, src
}

func discardSeam() *seam.Seam {
	return &seam.Seam{Name: "discard", Package: "solver", In: "Discard", Rename: "discard", Why: "test"}
}

// snapshot returns the state of a tree on disk: the content of files, the targets of
// links, and modification times.
func snapshot(t *testing.T, dir string) map[string]string {
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			return nil
		}
		info, err := os.Lstat(path)
		require.NoError(t, err)
		dt, err := os.ReadFile(path)
		require.NoError(t, err)
		target, _ := os.Readlink(path)
		out[strings.TrimPrefix(path, dir+"/")] = strings.Join([]string{info.Mode().String(), info.ModTime().String(), target, string(dt)}, "\n")
		return nil
	}))
	return out
}

func TestTree(t *testing.T) {
	t.Parallel()
	opt, src := repository(t)
	tree, err := plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.NoDirExists(t, tree.Dir, "planning writes nothing")
	require.NoError(t, tree.Write())

	cmd := exec.CommandContext(t.Context(), "go", "test", "./...")
	cmd.Dir = tree.Dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	dt, err := cmd.CombinedOutput()
	require.NoError(t, err, string(dt))

	info, err := os.Stat(filepath.Join(tree.Dir, "hack/run"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode().Perm())

	// an edit in the tree is an edit of the repository
	require.NoError(t, os.WriteFile(filepath.Join(tree.Dir, "solver/owners.go"), []byte("package solver\n"), 0o600))
	dt, err = os.ReadFile(filepath.Join(opt.Root, "solver/owners.go"))
	require.NoError(t, err)
	require.Equal(t, "package solver\n", string(dt))
}

func TestTreeAgain(t *testing.T) {
	t.Parallel()
	opt, src := repository(t)
	tree, err := plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.NoError(t, tree.Write())
	before := snapshot(t, tree.Dir)
	require.NoError(t, tree.Write())
	require.Equal(t, before, snapshot(t, tree.Dir), "nothing is written again")

	// Write removes files that the repository no longer has, and restores damaged ones
	require.NoError(t, os.Remove(filepath.Join(opt.Root, "solver/owners_test.go")))
	require.NoError(t, os.WriteFile(filepath.Join(tree.Dir, "go.mod"), []byte("damaged"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(tree.Dir, "stray.go"), []byte("package stray"), 0o600))
	tree, err = plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.NoError(t, tree.Write())
	after := snapshot(t, tree.Dir)
	require.NotContains(t, after, "solver/owners_test.go")
	require.NotContains(t, after, "stray.go")
	require.Contains(t, after["go.mod"], "module example.com/upstream")
	require.Equal(t, before["solver/jobs.go"], after["solver/jobs.go"])
}

// TestTreeCopies vendors a tree with copies, because go mod vendor leaves links out.
func TestTreeCopies(t *testing.T) {
	t.Parallel()
	opt, src := repository(t)
	opt.Copies = true
	tree, err := plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.NoError(t, tree.Write())
	require.Equal(t, filepath.Join(opt.Root, "build", "v1.0.0-copies"), tree.Dir)

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/program\n\ngo 1.26\n\nrequire example.com/upstream v1.0.0\n\nreplace example.com/upstream => "+tree.Dir+"\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"example.com/upstream/solver\"\n\nfunc main() { print(solver.Discard()) }\n"), 0o600))
	for _, args := range [][]string{{"mod", "vendor"}, {"run", "-mod=vendor", "."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		dt, err := cmd.CombinedOutput()
		require.NoError(t, err, string(dt))
		if args[0] == "run" {
			require.Equal(t, "added, upstream", string(dt))
		}
	}

	before := snapshot(t, tree.Dir)
	require.NoError(t, tree.Write())
	require.Equal(t, before, snapshot(t, tree.Dir), "nothing is written again")
}

func TestTreeUnmodified(t *testing.T) {
	t.Parallel()
	opt, src := repository(t)
	opt.Unmodified = true
	tree, err := plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.NoError(t, tree.Write())
	require.NotContains(t, snapshot(t, tree.Dir), "solver/owners.go")
	diffs, err := tree.Diff()
	require.NoError(t, err)
	require.Empty(t, diffs)
}

// TestTreeOfModule assembles a module whose added files are below the folder with its
// name. They must not be in BuildKit's tree, nor BuildKit's added files in its tree.
func TestTreeOfModule(t *testing.T) {
	t.Parallel()
	opt, src := repository(t)
	opt.Module = "other"
	added := filepath.Join(opt.Root, "other", "solver", "more.go")
	require.NoError(t, os.MkdirAll(filepath.Dir(added), 0o755))
	require.NoError(t, os.WriteFile(added, []byte("package solver\n\nfunc Discard() string { return \"other, \" + discard() }\n"), 0o600))
	tree, err := plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(opt.Root, "build", "other-v1.0.0"), tree.Dir)
	require.Equal(t, []string{"solver/more.go"}, tree.Added)
	require.NoError(t, tree.Write())
	dt, err := os.ReadFile(filepath.Join(tree.Dir, "solver", "more.go"))
	require.NoError(t, err)
	require.Contains(t, string(dt), `"other, "`)
	diffs, err := tree.Diff()
	require.NoError(t, err)
	require.Len(t, diffs, 2)
	require.Equal(t, "solver/more.go", diffs[1].Path)
	require.True(t, diffs[1].New)
	require.Contains(t, diffs[1].Unified, "+++ b/solver/more.go\n")

	require.NoError(t, os.Rename(added, filepath.Join(filepath.Dir(added), "jobs.go")))
	_, err = plan(opt, src, []*seam.Seam{discardSeam()})
	require.ErrorContains(t, err, "added file solver/jobs.go exists in other v1.0.0: rename it")

	opt.Module = ""
	tree, err = plan(opt, src, []*seam.Seam{discardSeam()})
	require.NoError(t, err)
	require.Equal(t, []string{"solver/owners.go", "solver/owners_test.go"}, tree.Added)
}

func TestTreeErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		added map[string]string
		seam  func(*seam.Seam)
		err   string
	}{
		{name: "seam without match", seam: func(s *seam.Seam) { s.In = "Gone" }, err: "BuildKit v1.0.0: seam discard in package solver: declaration Gone not found"},
		{name: "seam without package", seam: func(s *seam.Seam) { s.Package = "gone" }, err: "BuildKit v1.0.0 has no package gone: seam discard needs its declaration Discard"},
		{name: "collision", added: map[string]string{"solver/jobs.go": "package solver\n"}, err: "added file solver/jobs.go exists in BuildKit v1.0.0"},
		{name: "unknown folder", added: map[string]string{"executor/more.go": "package executor\n"}, err: "executor/more.go is in no folder that go.mod ignores: add ./executor to its ignore block"},
		{name: "not Go", added: map[string]string{"solver/notes.md": "notes\n"}, err: "solver/notes.md is not a Go file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			opt, src := repository(t)
			good, err := plan(opt, src, []*seam.Seam{discardSeam()})
			require.NoError(t, err)
			require.NoError(t, good.Write())
			before := snapshot(t, good.Dir)

			for name, content := range tc.added {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(opt.Root, name)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(opt.Root, name), []byte(content), 0o600))
			}
			s := discardSeam()
			if tc.seam != nil {
				tc.seam(s)
			}
			_, err = plan(opt, src, []*seam.Seam{s})
			require.ErrorContains(t, err, tc.err)
			require.Equal(t, before, snapshot(t, good.Dir), "the old tree stays as it was")
		})
	}
}

func TestPlanErrors(t *testing.T) {
	opt := Options{Root: t.TempDir(), Version: "v0.34.2"}
	list := func(s string) {
		require.NoError(t, os.WriteFile(filepath.Join(opt.Root, SeamList), []byte(s), 0o600))
	}
	_, err := Plan(t.Context(), opt)
	require.ErrorContains(t, err, "seams.yaml")
	list("seams: []\n")
	_, err = Plan(t.Context(), opt)
	require.EqualError(t, err, "BuildKit v0.34.2 is not supported. Supported: none. To try it: graphload upgrade v0.34.2")
	list("releases: {v0.34.0: h1:x, v0.9.0: h1:y}\nmodules: {other: {path: example.com/other}}\n")
	_, err = Plan(t.Context(), Options{Root: opt.Root, Module: "other", Version: "v1.0.0"})
	require.ErrorContains(t, err, "other v1.0.0 is not supported. Supported: none. To support it: add its checksum under releases in seams.yaml")
	_, err = Plan(t.Context(), opt)
	require.ErrorContains(t, err, "BuildKit v0.34.2 is not supported. Supported: v0.34.0, v0.9.0. To try it: graphload upgrade v0.34.2")
	require.EqualError(t, opt.Listed(), err.Error())
	list("releases: {v0.34.2: h1:wrong}\n")
	_, err = Plan(t.Context(), opt)
	require.ErrorContains(t, err, "but h1:wrong is recorded")
	list("releases: {v0.0.0-nothing: h1:x}\n")
	opt.Version = "v0.0.0-nothing"
	_, err = Plan(t.Context(), opt)
	require.ErrorContains(t, err, "failed to fetch github.com/moby/buildkit@v0.0.0-nothing")
	t.Setenv("PATH", t.TempDir())
	_, err = Plan(t.Context(), opt)
	require.ErrorContains(t, err, "the go command is needed")
}

// modules are the modules of the seam list of this repository, BuildKit first.
var modules = []string{"", "buildx"}

// planRepository returns the plan of a module of this repository at its default release.
func planRepository(t *testing.T, module string) *Tree {
	root, err := upstream.Root()
	require.NoError(t, err)
	opt, err := Default(root, module)
	require.NoError(t, err)
	tree, err := Plan(t.Context(), opt)
	require.NoError(t, err)
	return tree
}

// eachModule runs a test for every module of the seam list.
func eachModule(t *testing.T, test func(*testing.T, *Tree)) {
	for _, module := range modules {
		tree := planRepository(t, module)
		t.Run(tree.Name(), func(t *testing.T) {
			t.Parallel()
			test(t, tree)
		})
	}
}

func TestModules(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	list, err := seam.Load(filepath.Join(root, SeamList))
	require.NoError(t, err)
	require.ElementsMatch(t, modules, append(slices.Collect(maps.Keys(list.Modules)), ""), "the tests below do not run for all modules")
}

// TestLimits keeps the change of upstream's own files small. Code beyond these limits
// belongs in an added file.
func TestLimits(t *testing.T) {
	t.Parallel()
	for module, limit := range map[string]int{"": 60, "buildx": 1} {
		testLimits(t, planRepository(t, module), limit)
	}
}

func testLimits(t *testing.T, tree *Tree, maxLines int) {
	diffs, err := tree.Diff()
	require.NoError(t, err)
	lines := 0
	for _, d := range diffs {
		if !d.New {
			lines += d.Plus
		}
	}
	require.LessOrEqual(t, lines, maxLines, "lines added to or altered in upstream files")
}

// TestOnlySeams compares the tree with upstream file by file.
func TestOnlySeams(t *testing.T) {
	t.Parallel()
	eachModule(t, testOnlySeams)
}

func testOnlySeams(t *testing.T, tree *Tree) {
	tree.Dir = filepath.Join(t.TempDir(), "build", tree.Version)
	require.NoError(t, tree.Write())
	require.NoError(t, filepath.WalkDir(tree.Dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(tree.Dir, path)
		require.NoError(t, err)
		if _, ok := tree.Changed[rel]; ok || d.Type() == fs.ModeSymlink {
			return nil
		}
		want, err := os.ReadFile(filepath.Join(tree.Upstream.Dir, rel))
		require.NoError(t, err)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s differs and has no seam", rel)
		return nil
	}))
}

// TestPatch applies the diff to a checkout of upstream and compares it with
// the tree.
func TestPatch(t *testing.T) {
	t.Parallel()
	eachModule(t, testPatch)
}

func testPatch(t *testing.T, tree *Tree) {
	tree.Dir = filepath.Join(t.TempDir(), "build", tree.Version)
	require.NoError(t, tree.Write())
	patch, err := tree.Patch()
	require.NoError(t, err)

	checkout := t.TempDir()
	unmodified, err := plan(Options{Root: tree.Root, Module: tree.Module, Version: tree.Version, Unmodified: true}, tree.Upstream, nil)
	require.NoError(t, err)
	unmodified.Dir = checkout
	require.NoError(t, unmodified.Write())
	git(t, checkout, nil, "init", "-q")
	git(t, checkout, bytes.NewBuffer(patch), "apply", "--whitespace=error-all", "-")
	require.NoError(t, os.RemoveAll(filepath.Join(checkout, ".git")))

	require.NoError(t, filepath.WalkDir(checkout, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(checkout, path)
		require.NoError(t, err)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join(tree.Dir, rel))
		if os.IsNotExist(err) { // links are relative to the real path of the tree
			want, err = os.ReadFile(tree.Source(rel))
		}
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), rel)
		return nil
	}))
	for _, rel := range tree.Added {
		require.FileExists(t, filepath.Join(checkout, rel))
	}
}

func git(t *testing.T, dir string, stdin *bytes.Buffer, args ...string) {
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "git", args...)
	cmd.Dir = dir
	if stdin != nil {
		cmd.Stdin = stdin
	}
	dt, err := cmd.CombinedOutput()
	require.NoError(t, err, string(dt))
}

// TestAddedFoldersIgnored requires that go.mod ignores the folders of added files, which
// compile only in the tree.
func TestAddedFoldersIgnored(t *testing.T) {
	const root = "../.."
	dirs, err := addedDirs(root)
	require.NoError(t, err)
	require.Contains(t, dirs, "solver")
	require.Contains(t, dirs, "cmd/buildkitd")
	require.NotContains(t, dirs, "buildx")
	dt, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	mod, err := modfile.Parse("go.mod", dt, nil)
	require.NoError(t, err)
	var ignored []string
	for _, i := range mod.Ignore {
		ignored = append(ignored, strings.TrimPrefix(i.Path, "./"))
	}
	for _, dir := range append(dirs, modules[1:]...) {
		require.Contains(t, ignored, dir, "add ./%s to the ignore block of go.mod", dir)
	}
}

// TestNoUpstreamCode looks for copies of upstream's functions in the repository: a
// function with the same body of five statements or more is a copy, even with another
// name and other comments.
func TestNoUpstreamCode(t *testing.T) {
	t.Parallel()
	eachModule(t, func(t *testing.T, tree *Tree) {
		theirs := functionBodies(t, tree.Upstream.Dir)
		require.Greater(t, len(theirs), 1000)
		ours := functionBodies(t, tree.Root, filepath.Join(tree.Root, "build"), filepath.Join(tree.Root, "bin"))
		for body, place := range ours {
			require.Empty(t, theirs[body], "%s is a copy", place)
		}
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Values(ours)), func(place string) bool {
			return strings.HasPrefix(place, tree.Source(filepath.Dir(tree.Added[0])))
		}), "added files are looked at")
	})
}

// functionBodies returns the places of the functions below dir by their code, except
// for functions in the folders to skip.
func functionBodies(t *testing.T, dir string, skip ...string) map[string]string {
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			if slices.Contains(skip, path) || d.Name() == ".git" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range f.Decls {
			fd, ok := decl.(*ast.FuncDecl)
			if !ok || fd.Body == nil || statements(fd.Body) < 5 {
				continue
			}
			var buf bytes.Buffer
			require.NoError(t, format.Node(&buf, token.NewFileSet(), fd.Body))
			out[buf.String()] = fset.Position(fd.Pos()).String()
		}
		return nil
	}))
	return out
}

func statements(n ast.Node) (count int) {
	ast.Inspect(n, func(n ast.Node) bool {
		if _, ok := n.(ast.Stmt); ok {
			if _, block := n.(*ast.BlockStmt); !block {
				count++
			}
		}
		return true
	})
	return count
}
