package series

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

var (
	author = Person{Name: "Åsa Builder", Email: "asa@example.com"}
	date   = time.Date(2026, 11, 2, 15, 4, 5, 0, time.UTC)
)

// fixture is a small repository with a seam list, and the upstream module that the list
// changes.
type fixture struct {
	root, upstream string
}

const fixtureSeams = `releases: {v1.0.0: "h1:x"}
seams:
- {name: discard, package: solver, in: Discard, rename: discard, why: jobs own vertices}
- {name: new, package: solver, in: New, replace-call: one, with: many, why: jobs are observed}
- {name: ask, package: solver/mounts, in: Ask, rename: askFirst, why: all sessions are asked}
`

// fixtureCommits returns the commits of the fixture. A file of the first commit calls
// code of the third.
func fixtureCommits() []Commit {
	return []Commit{
		{Title: "solver: own vertices, and more: it is a title that is too long for a name", Body: "Why.", Paths: []string{"solver"}},
		{Title: "mounts: ask all", Body: "Because.\n\nIt is so.", Paths: []string{"solver/mounts"}},
		{
			Title: "solver: observe jobs", Body: "For operators.", Paths: []string{"solver/observe.go"}, Seams: []string{"new"},
			Hooks: []Hook{
				{File: "solver/owners.go", Code: "\tobserved bool\n"},
				{File: "solver/owners.go", Code: "\treturn observe(discard())\n", Before: "\treturn discard()\n"},
			},
		},
		{Title: "version: tell releases apart", Body: "For releases.", Paths: []string{"util/version"}, ReleaseOnly: true},
	}
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{root: t.TempDir(), upstream: t.TempDir()}
	writeFiles(t, f.root, map[string]string{
		"seams.yaml":              fixtureSeams,
		"go.mod":                  "module example.com/fixture\n\nignore (\n\t./client\n\t./solver\n\t./util\n)\n",
		"solver/owners.go":        "package solver\n\ntype owner struct {\n\tid       string\n\tobserved bool\n}\n\nfunc Discard() int {\n\treturn observe(discard())\n}\n",
		"solver/observe.go":       "package solver\n\nfunc observe(n int) int { return n }\n\nfunc many() int { return 2 }\n",
		"solver/mounts/ask.go":    "package mounts\n\nfunc Ask() { askFirst() }\n",
		"util/version/release.go": "package version\n",
	})
	writeFiles(t, f.upstream, map[string]string{
		"go.mod":                  "module github.com/moby/buildkit\n\ngo 1.26\n",
		"solver/jobs.go":          "package solver\n\nfunc Discard() int {\n\treturn 1\n}\n\nfunc New() int {\n\treturn one()\n}\n\nfunc one() int { return 1 }\n",
		"solver/mounts/mounts.go": "package mounts\n\nfunc Ask() {}\n",
		"docs/README.md":          "upstream\n",
	})
	return f
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for rel, content := range files {
		path := filepath.Join(dir, rel)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

func (f *fixture) options() assemble.Options {
	return assemble.Options{Root: f.root, Version: "v1.0.0"}
}

func (f *fixture) plan(t *testing.T) *assemble.Tree {
	t.Helper()
	tree, err := assemble.PlanSource(f.options(), &upstream.Source{Version: "v1.0.0", Dir: f.upstream})
	require.NoError(t, err)
	return tree
}

func (f *fixture) series(t *testing.T, opt Options) []Patch {
	t.Helper()
	p, err := split(f.plan(t), fixtureCommits())
	require.NoError(t, err)
	patches, err := p.commit(t.Context(), t.TempDir(), opt)
	require.NoError(t, err)
	return patches
}

func TestSeries(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	patches := f.series(t, Options{Author: author, Date: date})
	require.Len(t, patches, 4)
	require.Regexp(t, `^0001-solver-own-vertices-and-more-it-is-a-title-that-is.*\.patch$`, patches[0].Name)
	require.Equal(t, "0002-mounts-ask-all.patch", patches[1].Name)
	require.Equal(t, []string{"./solver"}, patches[0].Packages)
	require.Equal(t, []string{"./solver/mounts"}, patches[1].Packages)
	require.Equal(t, patches, f.series(t, Options{Author: author, Date: date}), "the same bytes each time")

	mail := string(patches[1].Mail)
	for _, want := range []string{
		"From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: =?UTF-8?q?=C3=85sa=20Builder?= <asa@example.com>\nDate: Mon, 2 Nov 2026 15:04:05 +0000\nSubject: [PATCH 2/4] mounts: ask all\n",
		"\nBecause.\n\nIt is so.\n\nSigned-off-by: Åsa Builder <asa@example.com>\n---\n",
		"\n-- \nBuildKit v1.0.0\n",
	} {
		require.Contains(t, mail, want)
	}

	repo, err := Import(t.Context(), t.TempDir(), f.upstream, "upstream")
	require.NoError(t, err)
	read := func(rel string) string {
		dt, err := os.ReadFile(filepath.Join(repo.Dir, rel))
		require.NoError(t, err)
		return string(dt)
	}
	require.NoError(t, repo.Apply(t.Context(), patches[0]))
	require.Equal(t, "package solver\n\ntype owner struct {\n\tid string\n}\n\nfunc Discard() int {\n\treturn discard()\n}\n", read("solver/owners.go"))
	require.Contains(t, read("solver/jobs.go"), "func discard() int {")
	require.Contains(t, read("solver/jobs.go"), "return one()")
	require.NoFileExists(t, filepath.Join(repo.Dir, "solver/observe.go"))
	for _, p := range patches[1:] {
		require.NoError(t, repo.Apply(t.Context(), p))
	}
	require.Contains(t, read("solver/jobs.go"), "return many()")
	requireTree(t, repo, f.plan(t))
}

func TestSeriesErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		commits func([]Commit)
		added   map[string]string
		err     string
	}{
		{name: "a file of no commit", added: map[string]string{"client/a.go": "package client\n"}, err: "client/a.go belongs to no commit of the series: add its folder to one in internal/series"},
		{name: "a seam of no commit", commits: func(c []Commit) { c[0].Paths, c[2].Paths = []string{"solver/owners.go"}, []string{"solver/observe.go"} }, err: "seam discard belongs to no commit of the series: add it, or its folder solver, to one"},
		{name: "a path without a file", commits: func(c []Commit) { c[1].Paths = append(c[1].Paths, "cache") }, err: `commit "mounts: ask all" of the series has nothing of cache`},
		{name: "a seam that is not listed", commits: func(c []Commit) { c[1].Seams = []string{"gone"} }, err: `commit "mounts: ask all" of the series has nothing of gone`},
		{name: "a hook without code", commits: func(c []Commit) { c[2].Hooks[0].Code = "\tgone bool\n" }, err: `solver/owners.go has 0 times what commit "solver: observe jobs" of the series adds to it, and not once: "\tgone bool\n"`},
		{name: "a hook that leaves no Go", commits: func(c []Commit) { c[2].Hooks[1].Before = "\t}\n" }, err: "solver/owners.go without what later commits of the series add to it"},
		{name: "an empty commit", commits: func(c []Commit) { c[3].Paths = nil; c[1].Paths = append(c[1].Paths, "util") }, err: `commit "version: tell releases apart" of the series is empty`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			writeFiles(t, f.root, tc.added)
			commits := fixtureCommits()
			if tc.commits != nil {
				tc.commits(commits)
			}
			p, err := split(f.plan(t), commits)
			if err == nil {
				_, err = p.commit(t.Context(), t.TempDir(), Options{Author: author, Date: date})
			}
			require.ErrorContains(t, err, tc.err)
		})
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "series")
	const zero = "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n"
	a, b := []byte(zero+"a\n-- \nBuildKit v0.34.2\n\n"), []byte(zero+"b\n-- \nbuildx 0123456789ab\n\n")
	paths, err := Write(dir, []Patch{{Name: "0001-a.patch", Mail: a}, {Name: "0002-b.patch", Mail: b}})
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, "0001-a.patch"), filepath.Join(dir, "0002-b.patch")}, paths)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600))

	_, err = Write(dir, []Patch{{Name: "0001-c.patch", Mail: []byte("c")}})
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"0001-c.patch", "notes"}, names, "mails of the series before are gone")
}

// TestWriteForeign requires that Write removes no mail if the folder has one that Write
// did not write.
func TestWriteForeign(t *testing.T) {
	t.Parallel()
	const (
		zero = "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n"
		ours = zero + "a\n-- \nBuildKit v0.34.2\n\n"
	)
	for name, mail := range map[string]string{
		"commit":    "From 1000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\na\n-- \nBuildKit v0.34.2\n\n",
		"signature": zero + "-- \nBuildKit v0.34.2\n\n-- \n2.39.5\n\n",
		"empty":     "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			writeFiles(t, dir, map[string]string{"0001-a.patch": ours, "0002-theirs.patch": mail})
			_, err := Write(dir, []Patch{{Name: "0001-c.patch", Mail: []byte(ours)}})
			require.EqualError(t, err, filepath.Join(dir, "0002-theirs.patch")+" is not a mail of this series: name another folder")
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 2)
			require.FileExists(t, filepath.Join(dir, "0001-a.patch"))
		})
	}
}

// TestReleaseOnly requires that commits only for releases come after all others.
func TestReleaseOnly(t *testing.T) {
	t.Parallel()
	for module, commits := range Modules {
		only := false
		for _, c := range commits {
			require.False(t, only && !c.ReleaseOnly, "%s: %s", module, c.Title)
			only = c.ReleaseOnly
		}
	}
}

// TestDocs compares the commits with their tables in the documentation.
func TestDocs(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	dt, err := os.ReadFile(filepath.Join(root, "docs", "going-upstream.md"))
	require.NoError(t, err)
	tables := strings.Split(string(dt), "| commit | files |\n|---|---|\n")[1:]
	require.Len(t, tables, len(Modules))
	for i, module := range slices.Sorted(maps.Keys(Modules)) { // BuildKit is the first
		table, _, _ := strings.Cut(tables[i], "\n\n")
		var want []string
		for _, c := range Modules[module] {
			want = append(want, fmt.Sprintf("| %s | `%s` |", c.Title, strings.Join(c.Paths, "`, `")))
		}
		require.Equal(t, want, strings.Split(table, "\n"))
	}
}

// TestApply applies the series of each module to an import of every known release and
// requires that the result is the assembled tree.
func TestApply(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	list, err := seam.Load(filepath.Join(root, assemble.SeamList))
	require.NoError(t, err)
	require.Len(t, Modules, 1+len(list.Modules), "a series for each module of the seam list")
	for module := range Modules {
		current, err := assemble.Default(root, module)
		require.NoError(t, err)
		versions, err := current.Releases()
		require.NoError(t, err)
		for _, version := range versions {
			if testing.Short() && version != current.Version {
				continue
			}
			opt := current
			opt.Version = version
			t.Run(opt.Release(), func(t *testing.T) {
				t.Parallel()
				testApply(t, opt)
			})
		}
	}
}

func testApply(t *testing.T, opt assemble.Options) {
	tree, err := assemble.Plan(t.Context(), opt)
	require.NoError(t, err)
	patches, err := New(t.Context(), tree, Options{Author: author, Date: date})
	require.NoError(t, err)
	repo, err := Import(t.Context(), t.TempDir(), tree.Upstream.Dir, opt.Release())
	require.NoError(t, err)
	for _, p := range patches {
		require.NoError(t, repo.Apply(t.Context(), p))
		require.Contains(t, string(p.Mail), "\n-- \n"+opt.Release()+"\n")
	}
	requireTree(t, repo, tree)

	log, err := repo.Git(t.Context(), nil, "log", "--reverse", "--format=%an <%ae> %aI %s", fmt.Sprintf("HEAD~%d..", len(patches)))
	require.NoError(t, err)
	var want []string
	for _, c := range Modules[opt.Module] {
		want = append(want, "Åsa Builder <asa@example.com> 2026-11-02T15:04:05+00:00 "+c.Title)
	}
	require.Equal(t, want, strings.Split(strings.TrimSpace(log), "\n"))
	bodies, err := repo.Git(t.Context(), nil, "log", "--format=%b")
	require.NoError(t, err)
	require.Equal(t, len(patches), strings.Count(bodies, "Signed-off-by: Åsa Builder <asa@example.com>"))
}

// requireTree requires that the series changes the same files as the tree, in the same
// way.
func requireTree(t *testing.T, repo *Repository, tree *assemble.Tree) {
	t.Helper()
	names, err := repo.Git(context.WithoutCancel(t.Context()), nil, "diff", "--name-only", "--no-renames", rootCommit(t, repo), "HEAD")
	require.NoError(t, err)
	want := map[string][]byte{}
	for rel, dt := range tree.Changed {
		want[rel] = dt
	}
	for _, rel := range tree.Added {
		want[rel], err = os.ReadFile(tree.Source(rel))
		require.NoError(t, err)
	}
	got := strings.Fields(names)
	require.Len(t, got, len(want))
	for _, rel := range got {
		require.Contains(t, want, rel)
		dt, err := os.ReadFile(filepath.Join(repo.Dir, rel))
		require.NoError(t, err)
		require.Equal(t, string(want[rel]), string(dt), rel)
	}
	status, err := repo.Git(t.Context(), nil, "status", "--porcelain")
	require.NoError(t, err)
	require.Empty(t, status)
}

func rootCommit(t *testing.T, repo *Repository) string {
	t.Helper()
	rev, err := repo.Git(t.Context(), nil, "rev-list", "--max-parents=0", "HEAD")
	require.NoError(t, err)
	return strings.TrimSpace(rev)
}
