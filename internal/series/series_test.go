package series

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// TestDocs compares the table of the commits in the documentation.
func TestDocs(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	dt, err := os.ReadFile(filepath.Join(root, "docs", "upstream.md"))
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(dt), "| commit | folders |\n|---|---|\n")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	var want []string
	for _, c := range Commits {
		want = append(want, fmt.Sprintf("| %s | `%s` |", c.Title, strings.Join(c.Folders, "`, `")))
	}
	require.Equal(t, want, strings.Split(table, "\n"))
}

// TestApply takes the series into an import of every known release: the result
// is the assembled tree.
func TestApply(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	list, err := seam.Load(filepath.Join(root, assemble.SeamList))
	require.NoError(t, err)
	current, err := upstream.DefaultVersion(root)
	require.NoError(t, err)
	for version := range list.Releases {
		if testing.Short() && version != current {
			continue
		}
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			tree, err := assemble.Plan(t.Context(), assemble.Options{Root: root, Version: version})
			require.NoError(t, err)
			patches, err := New(tree, author, date)
			require.NoError(t, err)
			repo, err := Import(t.Context(), t.TempDir(), tree.Upstream.Dir, "BuildKit "+version)
			require.NoError(t, err)
			for _, p := range patches {
				require.NoError(t, repo.Apply(t.Context(), p))
			}
			requireTree(t, repo, tree)

			log, err := repo.Git(t.Context(), nil, "log", "--reverse", "--format=%an <%ae> %aI %s", fmt.Sprintf("HEAD~%d..", len(patches)))
			require.NoError(t, err)
			var want []string
			for _, c := range Commits {
				want = append(want, "Åsa Builder <asa@example.com> 2026-11-02T15:04:05+00:00 "+c.Title)
			}
			require.Equal(t, want, strings.Split(strings.TrimSpace(log), "\n"))
			bodies, err := repo.Git(t.Context(), nil, "log", "--format=%b")
			require.NoError(t, err)
			require.Equal(t, len(patches), strings.Count(bodies, "Signed-off-by: Åsa Builder <asa@example.com>"))
		})
	}
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
		want[rel], err = os.ReadFile(filepath.Join(tree.Root, rel))
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
