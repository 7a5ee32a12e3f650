package series

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// checkout commits the upstream module of the fixture.
func (f *fixture) checkout(t *testing.T) *Repository {
	t.Helper()
	repo := &Repository{Dir: f.upstream}
	require.NoError(t, os.Symlink("docs/README.md", filepath.Join(f.upstream, "README.md")))
	require.NoError(t, repo.init(t.Context(), "upstream"))
	return repo
}

// snapshot returns all files of a folder, including those of git, with their
// modification times.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		out[path] = info.Mode().String() + info.ModTime().String()
		if d.Type().IsRegular() {
			dt, err := os.ReadFile(path)
			require.NoError(t, err)
			out[path] += string(dt)
		}
		return nil
	}))
	return out
}

func TestPlanOnto(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	repo := f.checkout(t)
	// changes in other files are allowed, and do not affect the plan
	writeFiles(t, f.upstream, map[string]string{"docs/README.md": "changed\n", "solver/notes.go": "not Go"})
	before := snapshot(t, f.upstream)

	tree, err := PlanOnto(t.Context(), f.options(), filepath.Join(f.upstream, "docs"), t.TempDir())
	require.NoError(t, err)
	head, err := repo.Git(t.Context(), nil, "rev-parse", "HEAD")
	require.NoError(t, err)
	require.Equal(t, "BuildKit "+head[:12], tree.Release())
	require.NoFileExists(t, filepath.Join(tree.Upstream.Dir, "solver/notes.go"))
	p, err := split(tree, fixtureCommits())
	require.NoError(t, err)
	patches, err := p.commit(t.Context(), t.TempDir(), Options{Author: author, Date: date, Upstream: true})
	require.NoError(t, err)
	require.Equal(t, before, snapshot(t, f.upstream), "the checkout stays as it is")

	require.Len(t, patches, 3, "what is only for releases is left out")
	require.Contains(t, string(patches[2].Mail), "Subject: [PATCH 3/3] solver: observe jobs\n")
	for _, p := range patches {
		require.NoError(t, repo.Apply(t.Context(), p))
	}
	dt, err := os.ReadFile(filepath.Join(f.upstream, "solver/owners.go"))
	require.NoError(t, err)
	require.Contains(t, string(dt), "return observe(discard())")

	_, err = PlanOnto(t.Context(), f.options(), f.upstream, t.TempDir())
	require.ErrorContains(t, err, "added file solver/mounts/ask.go exists in BuildKit", "the series is applied already")
}

func TestPlanOntoErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		commit map[string]string // files to commit
		change map[string]string // files to leave uncommitted
		err    string
	}{
		{name: "another module", commit: map[string]string{"go.mod": "module example.com/other\n"}, err: "is not a git checkout of github.com/moby/buildkit but of example.com/other"},
		{name: "no seam", commit: map[string]string{"solver/jobs.go": "package solver\n\nfunc Discard() int { return 1 }\n\nfunc New() int { return 1 }\n"}, err: `seam new in package solver: "call one" not found in New at solver/jobs.go:5`},
		{name: "no declaration", commit: map[string]string{"solver/mounts/mounts.go": "package mounts\n"}, err: "seam ask in package solver/mounts: declaration Ask not found"},
		{name: "a change", change: map[string]string{"solver/jobs.go": "package solver\n"}, err: "has changes that are not committed in files of the series: solver/jobs.go"},
		{name: "a file that would be added", change: map[string]string{"solver/owners.go": "package solver\n"}, err: "has changes that are not committed in files of the series: solver/owners.go"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			repo := f.checkout(t)
			if tc.commit != nil {
				writeFiles(t, f.upstream, tc.commit)
				require.NoError(t, repo.commit(t.Context(), author, date, "changed"))
			}
			writeFiles(t, f.upstream, tc.change)
			before := snapshot(t, f.upstream)
			_, err := PlanOnto(t.Context(), f.options(), f.upstream, t.TempDir())
			require.ErrorContains(t, err, tc.err)
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, before, snapshot(t, f.upstream))
		})
	}
}

func TestOpenCheckout(t *testing.T) {
	t.Parallel()
	const module = "github.com/moby/buildkit"
	gone := filepath.Join(t.TempDir(), "gone")
	_, err := OpenCheckout(t.Context(), gone, module)
	require.EqualError(t, err, gone+" is not a folder")

	dir := t.TempDir()
	_, err = OpenCheckout(t.Context(), dir, module)
	require.ErrorContains(t, err, dir+" is not a git checkout of "+module)

	_, err = git(t.Context(), dir, nil, nil, "init", "--quiet")
	require.NoError(t, err)
	_, err = OpenCheckout(t.Context(), dir, module)
	require.ErrorContains(t, err, dir+" has no commit")

	writeFiles(t, dir, map[string]string{"a.txt": "a\n"})
	require.NoError(t, (&Repository{Dir: dir}).commit(t.Context(), author, date, "no Go"))
	_, err = OpenCheckout(t.Context(), dir, module)
	require.ErrorContains(t, err, "has no go.mod")

	writeFiles(t, dir, map[string]string{"go.mod": "module " + module + "\n"})
	require.NoError(t, (&Repository{Dir: dir}).commit(t.Context(), author, date, "Go"))
	c, err := OpenCheckout(t.Context(), dir, module)
	require.NoError(t, err)
	require.Len(t, c.Commit, 40)
	require.True(t, strings.HasPrefix(c.Commit, c.Version()))
}
