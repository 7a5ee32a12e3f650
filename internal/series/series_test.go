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

func TestBuild(t *testing.T) {
	t.Parallel()
	commits := []Commit{
		{Title: "solver: own vertices, and more: it is a title that is too long", Body: "Why.", Folders: []string{"solver"}},
		{Title: "mounts: ask", Body: "Because.", Folders: []string{"solver/llbsolver/mounts"}},
	}
	diffs := []assemble.FileDiff{
		{Path: "solver/jobs.go", Unified: "diff --git jobs\n", Plus: 2, Minus: 1},
		{Path: "solver/llbsolver/mounts/ssh.go", Unified: "diff --git ssh\n", Plus: 3},
		{Path: "solver/pb/digest.go", Unified: "diff --git digest\n", Plus: 4},
	}
	patches, err := build(commits, diffs, author, date, "BuildKit v1.0.0")
	require.NoError(t, err)
	require.Len(t, patches, 2)
	require.Equal(t, "0001-solver-own-vertices-and-more-it-is-a-title-that-is-t.patch", patches[0].Name)
	require.Equal(t, []string{"./solver", "./solver/pb"}, patches[0].Packages)
	require.Equal(t, []string{"./solver/llbsolver/mounts"}, patches[1].Packages)
	require.Equal(t, `From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: =?utf-8?q?=C3=85sa_Builder?= <asa@example.com>
Date: Mon, 02 Nov 2026 15:04:05 +0000
Subject: [PATCH 2/2] mounts: ask
MIME-Version: 1.0
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit

Because.

Signed-off-by: Åsa Builder <asa@example.com>
---
 1 files changed, 3 insertions(+), 0 deletions(-)

diff --git ssh
`+"-- \nBuildKit v1.0.0\n\n", string(patches[1].Mail))

	_, err = build(commits, append(diffs, assemble.FileDiff{Path: "client/a.go"}), author, date, "")
	require.ErrorContains(t, err, "client/a.go belongs to no commit of the series")
	_, err = build(commits, diffs[:1], author, date, "")
	require.ErrorContains(t, err, `commit "mounts: ask" of the series is empty`)
}

// TestDocs compares the tables of the commits in the documentation.
func TestDocs(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	dt, err := os.ReadFile(filepath.Join(root, "docs", "upstream.md"))
	require.NoError(t, err)
	tables := strings.Split(string(dt), "| commit | folders |\n|---|---|\n")[1:]
	require.Len(t, tables, len(Modules))
	for i, module := range slices.Sorted(maps.Keys(Modules)) { // BuildKit is the first
		table, _, _ := strings.Cut(tables[i], "\n\n")
		var want []string
		for _, c := range Modules[module] {
			want = append(want, fmt.Sprintf("| %s | `%s` |", c.Title, strings.Join(c.Folders, "`, `")))
		}
		require.Equal(t, want, strings.Split(table, "\n"))
	}
}

// TestApply takes the series of each module into an import of every known release:
// the result is the assembled tree.
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
	patches, err := New(tree, author, date)
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

// requireTree compares the files that the series changes with the tree. There
// must be no others.
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
