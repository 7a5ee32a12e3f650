// Package series writes the change as a series of commits for upstream: one
// mail for each, as git format-patch does, for git am.
package series

import (
	"fmt"
	"maps"
	"mime"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
)

// Commit is one commit of the series. What is in a folder belongs to the
// commit that names the folder, or the closest one above it, tests included.
type Commit struct {
	Title   string
	Body    string
	Folders []string
}

// Commits are the commits for BuildKit in their order. Each builds on the ones
// before it, and on nothing after. The last one is not for BuildKit: it is there so
// that the series as a whole is the assembled tree.
var Commits = []Commit{
	{
		Title:   "util/graphload: add switch for loading lazy solves",
		Folders: []string{"util/graphload"},
		Body: `A lazy gateway Solve returns a handle on a definition that the solver
knows nothing about. The next commits load it into the build graph.

BUILDKIT_GRAPHLOAD=0 in the environment of the daemon keeps the old
behavior, and BUILDKIT_GRAPHLOAD=ahead evaluates what is chained before its
client asks for it.`,
	},
	{
		Title:   "session: let lent sessions not hide those of the build",
		Folders: []string{"session", "source"},
		Body: `The next commit lets one build lend its session to another. Where that
happens, Manager.Any asks the lent sessions first and returns the error that
the build would get without them. A session that is closed while it is asked
does not count.

A session with a login that a registry or server refuses ends the search. Where
sessions are lent, resolve images, git and HTTP sources with one session after
the other, and fetch the layers of an image with the sessions of its vertex.

Groups to which nothing is lent are asked as before.`,
	},
	{
		Title:   "solver: let jobs lend their session by chain",
		Folders: []string{"solver"},
		Body: `Job.Register makes a job an owner of a vertex and its ancestors without
building them. Job.AddResult notes that its client has received a result, and
Job.ChainOn that another job contains one. While both jobs last, the vertices
that the base owns can use its session when the other job builds them.

Owners keep no state and no result. A job that is not chained is built as
before.

Ask the sessions of a vertex in one order: bases by registration, jobs by
start, parents. It was the order of a map.

Job.EvaluateAhead builds a result as soon as a base of it evaluates. A second
job does it, which leaves the vertices when the client has joined, or has
given the result up. Its ops leave a slot of max-parallelism free.`,
	},
	{
		Title:   "solver/mounts: ask all sessions for an optional SSH agent",
		Folders: []string{"solver/llbsolver/mounts"},
		Body: `An optional SSH mount was dropped when the first session had no agent, even
if the next one had.`,
	},
	{
		Title:   "llbsolver: load lazily solved definitions into the graph",
		Folders: []string{"solver/llbsolver"},
		Body: `The definition of a lazy Solve was loaded when it was evaluated. A client
that chained another build on it had to wait for that evaluation, or the
steps ran with the session of the other build, without the secrets, SSH
agents, local directories and logins of their own.

Load the definition when Solve is called, register its vertices with the job
and build what was loaded when it is evaluated. Source policies are evaluated
once per ref; cache mounts are pruned and cache imports started when the
definition is built, as before. A build is chained on the builds whose
results are part of what its client passes in.

Refs of a Solve with Evaluate are evaluated concurrently.

With BUILDKIT_GRAPHLOAD=ahead, refs that are chained on a build are evaluated
when that build evaluates. It is off by default, as without it nothing runs
that no client asks for.`,
	},
	{
		Title:   "buildkitd: show the build graph at the debug address",
		Folders: []string{"solver/debuggraph", "cmd/buildkitd"},
		Body: `Whose session a step asked could not be seen. /debug/graph lists the
active steps with the builds that own or build them, and the sessions that
they would ask, in order, with those that are lent. Browsers get a page that
draws the graph.

Nothing of an op is shown but the name that is shown in progress.`,
	},
	{
		Title:   "gateway: add capability for loaded lazy solves",
		Folders: []string{"frontend/gateway", "client"},
		Body: `gateway.solve.load tells clients that they do not need to order evaluations
themselves. EvaluateAll evaluates the refs of a result concurrently with any
daemon.`,
	},
	{
		Title:   "cache: fix dead records and leaked parents of concurrent builds",
		Folders: []string{"cache"},
		Body: `Finalize marks the writable half of a record as dead before it lets go of
it, under the lock of the record. Get looked without that lock, and failed
with "failed to get dead record" when it did so in between.

New clones the parent and finalizes it. When the build was canceled in
between, the clone was never released, and the record stayed in use until
the daemon ended.

Nothing before needs these repairs.`,
	},
	{
		Title:   "dockerfile: take version +graphload for its release",
		Folders: []string{"frontend/dockerfile/version"},
		Body: `Only for daemons that call themselves vX.Y.Z+graphload, to tell them from
those of the release: the version of the Dockerfile frontend in provenance
is the one of the release, and not one with -dev.

BuildKit itself has no such version. Leave this commit out where the series
becomes part of BuildKit: nothing before it needs it.`,
	},
}

// Modules are the commits for the modules of the seam list, by name. BuildKit has
// none.
var Modules = map[string][]Commit{
	"": Commits,
	"buildx": {
		{
			Title:   "build: evaluate linked targets in any order where the daemon allows it",
			Folders: []string{"build"},
			Body: `Linked targets are evaluated one after another, so that the steps of a
parent run with the parent's session. A chain takes as long as the work of all
its targets, also of the stages that do not need the parent.

A daemon with the gateway capability gateway.solve.load loads what is solved
lazily into its build graph and does not need the order. Evaluate a target
beside its parents there. A target whose parent fails is aborted as before, and
parents still wait until their children have been solved before they are
evaluated, and have completed before they end.`,
		},
	},
}

// Person is the author of the series, who signs it off.
type Person struct {
	Name, Email string
}

// Patch is one mail.
type Patch struct {
	Commit
	Name     string   // of the file, as format-patch names it
	Packages []string // with changes, as patterns for the go command
	Mail     []byte
}

// New returns the series for a tree.
func New(t *assemble.Tree, author Person, date time.Time) ([]Patch, error) {
	diffs, err := t.Diff()
	if err != nil {
		return nil, err
	}
	return build(Modules[t.Module], diffs, author, date, t.Release())
}

func build(commits []Commit, diffs []assemble.FileDiff, author Person, date time.Time, signature string) ([]Patch, error) {
	byCommit := make([][]assemble.FileDiff, len(commits))
	for _, d := range diffs {
		i := owner(commits, d.Path)
		if i < 0 {
			return nil, errors.Errorf("%s belongs to no commit of the series: add its folder to one in internal/series", d.Path)
		}
		byCommit[i] = append(byCommit[i], d)
	}
	var out []Patch
	for i, c := range commits {
		if len(byCommit[i]) == 0 {
			return nil, errors.Errorf("commit %q of the series is empty", c.Title)
		}
		name := fmt.Sprintf("%04d-%s.patch", i+1, slug(c.Title))
		mail, pkgs := format(c, byCommit[i], author, date, fmt.Sprintf("%d/%d", i+1, len(commits)), signature)
		out = append(out, Patch{Commit: c, Name: name, Packages: pkgs, Mail: mail})
	}
	return out, nil
}

// owner returns the commit that names the closest folder above the file.
func owner(commits []Commit, file string) int {
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		for i, c := range commits {
			if slices.Contains(c.Folders, dir) {
				return i
			}
		}
	}
	return -1
}

func format(c Commit, diffs []assemble.FileDiff, author Person, date time.Time, number, signature string) ([]byte, []string) {
	var sb strings.Builder
	pkgs := map[string]bool{}
	files, plus, minus := 0, 0, 0
	var content strings.Builder
	for _, d := range diffs {
		content.WriteString(d.Unified)
		pkgs["./"+path.Dir(d.Path)] = true
		files, plus, minus = files+1, plus+d.Plus, minus+d.Minus
	}
	fmt.Fprintf(&sb, "From %040d Mon Sep 17 00:00:00 2001\n", 0)
	fmt.Fprintf(&sb, "From: %s <%s>\n", mime.QEncoding.Encode("utf-8", author.Name), author.Email)
	fmt.Fprintf(&sb, "Date: %s\n", date.Format(time.RFC1123Z))
	fmt.Fprintf(&sb, "Subject: [PATCH %s] %s\n", number, c.Title)
	if body := author.Name + content.String(); strings.ContainsFunc(body, func(r rune) bool { return r >= utf8.RuneSelf }) {
		sb.WriteString("MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n")
	}
	fmt.Fprintf(&sb, "\n%s\n\nSigned-off-by: %s <%s>\n---\n %d files changed, %d insertions(+), %d deletions(-)\n\n", c.Body, author.Name, author.Email, files, plus, minus)
	sb.WriteString(content.String())
	fmt.Fprintf(&sb, "-- \n%s\n\n", signature)
	return []byte(sb.String()), slices.Sorted(maps.Keys(pkgs))
}

// slug is the title in the form of a file name.
func slug(title string) string {
	fields := strings.FieldsFunc(title, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.'
	})
	s := strings.Join(fields, "-")
	return strings.TrimRight(s[:min(len(s), 52)], "-")
}
