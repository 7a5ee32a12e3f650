package series

// Commit is one commit of the series.
type Commit struct {
	Title string
	Body  string

	// Paths are added files and folders. A file belongs to the commit that names it,
	// or the closest folder above it, tests included.
	Paths []string

	// Seams are names of seams in the seam list. A seam that no commit names belongs
	// to the commit of its package.
	Seams []string

	// Hooks are the places where added files of earlier commits call code of this one.
	Hooks []Hook

	// ReleaseOnly marks a commit that makes no sense in upstream's repository. Such
	// commits come last, and a series for a checkout leaves them out.
	ReleaseOnly bool
}

// Hook is code in an added file that a later commit than that of the file adds.
type Hook struct {
	File   string
	Code   string // whole lines, which occur once in the file
	Before string // code in its place before the commit
}

// Commits are the commits for BuildKit, in the order in which a maintainer would
// review them: the sessions of a step, loading, the capability that tells clients;
// then the optional ones. Each depends only on commits before it.
var Commits = []Commit{
	{
		Title: "util/graphload: add switch for loading lazy solves",
		Paths: []string{"util/graphload"},
		Body: `A lazy gateway Solve returns a handle on a definition that the solver
knows nothing about. The next commits load it into the build graph.

BUILDKIT_GRAPHLOAD=0 in the environment of the daemon keeps the old
behavior.`,
	},
	{
		Title: "session: let lent sessions not hide those of the build",
		Paths: []string{"session", "source"},
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
		Title: "solver: let jobs lend their session by chain",
		Paths: []string{"solver"},
		Body: `Job.Register makes a job an owner of a vertex and its ancestors without
building them. Job.AddResult notes that its client has received a result, and
Job.ChainOn that another job contains one. While both jobs last, the vertices
that the base owns can use its session when the other job builds them.

Owners keep no state and no result. A job that is not chained is built as
before.

Ask the sessions of a vertex in one order: bases by registration, jobs by
start, parents. It was the order of a map.`,
	},
	{
		Title: "solver/mounts: ask all sessions for an optional SSH agent",
		Paths: []string{"solver/llbsolver/mounts"},
		Body: `An optional SSH mount was dropped when the first session had no agent, even
if the next one had.`,
	},
	{
		Title: "llbsolver: load lazily solved definitions into the graph",
		Paths: []string{"solver/llbsolver"},
		Body: `The definition of a lazy Solve was loaded when it was evaluated. A client
that chained another build on it had to wait for that evaluation, or the
steps ran with the session of the other build, without the secrets, SSH
agents, local directories and logins of their own.

Load the definition when Solve is called, register its vertices with the job
and build what was loaded when it is evaluated. Source policies are evaluated
once per ref; cache mounts are pruned and cache imports started when the
definition is built, as before. A build is chained on the builds whose
results are part of what its client passes in.

Refs of a Solve with Evaluate are evaluated concurrently.`,
	},
	{
		Title: "gateway: add capability for loaded lazy solves",
		Paths: []string{"frontend/gateway", "client"},
		Body: `gateway.solve.load tells clients that they do not need to order evaluations
themselves. EvaluateAll evaluates the refs of a result concurrently with any
daemon.`,
	},
	{
		Title: "solver: evaluate chained results ahead of their client",
		Paths: []string{
			"solver/ahead.go", "solver/ahead_test.go",
			"solver/llbsolver/ahead.go", "solver/llbsolver/ahead_test.go", "solver/llbsolver/ops/ahead.go",
			"util/graphload/values.go", "util/graphload/values_test.go",
		},
		Seams: []string{"acquire", "resolver-caches"},
		Hooks: aheadHooks,
		Body: `A client that evaluates linked results one after another loses the time
that they could run together. A daemon that has loaded them knows what comes.

Job.EvaluateAhead builds a result as soon as a base of it evaluates. A second
job does it, which leaves the vertices when the client has joined, or has
given the result up. Its ops leave a slot of max-parallelism free.

BUILDKIT_GRAPHLOAD=ahead in the environment of the daemon switches it on. It
is off by default, as without it nothing runs that no client asks for.`,
	},
	{
		Title: "buildkitd: show the build graph at the debug address",
		Paths: []string{
			"cmd/buildkitd", "solver/debuggraph",
			"solver/graph.go", "solver/graph_test.go", "solver/lookups.go",
			"solver/llbsolver/diagnostics.go", "solver/llbsolver/diagnostics_test.go", "solver/llbsolver/switch.go",
		},
		Seams: []string{"observe"},
		Hooks: diagnosticsHooks,
		Body: `Whose session a step asked could not be seen. /debug/graph lists the
active steps with the builds that own or build them, and the sessions that
they would ask, in order, with those that are lent. Browsers get a page that
draws the graph. Metrics count what builds own and lend.

Nothing of an op is shown but the name that is shown in progress.

The daemon logs at start what BUILDKIT_GRAPHLOAD selects, and does not start
with a value that means nothing.`,
	},
	{
		Title: "cache: find records that another build finalizes",
		Paths: []string{"cache/repairs_records.go", "cache/repairs_records_test.go"},
		Seams: []string{"record-gone"},
		Body: `Finalize marks the writable half of a record as dead before it removes it
from the record, under the lock of the record. Get looked without that lock,
and failed with "failed to get dead record" when it did so in between.

Nothing before needs this fix.`,
	},
	{
		Title: "cache: release the parent of a ref that is canceled",
		Paths: []string{"cache/repairs_newref.go", "cache/repairs_newref_test.go"},
		Seams: []string{"new-ref"},
		Body: `New clones the parent and finalizes it. When the build was canceled in
between, the clone was never released, and the record stayed in use until
the daemon ended.

Nothing before needs this fix.`,
	},
	{
		Title:       "dockerfile: take version +graphload for its release",
		Paths:       []string{"frontend/dockerfile/version"},
		ReleaseOnly: true,
		Body: `Only for daemons that call themselves vX.Y.Z+graphload, to tell them from
those of the release: the version of the Dockerfile frontend in provenance
is the one of the release, and not one with -dev.

BuildKit itself has no such version. Leave this commit out where the series
becomes part of BuildKit: nothing before it needs it.`,
	},
}

// aheadHooks are the hooks through which jobs and refs know that one of them is
// evaluated ahead.
var aheadHooks = []Hook{
	{File: "solver/owners.go", Code: "\tahead jobAhead\n\n"},
	{File: "solver/owners.go", Code: "\tahead   aheadSlots\n"},
	{File: "solver/owners.go", Code: "\tif of := j.owner.ahead.of; of != nil {\n\t\tj = of\n\t}\n"},
	{File: "solver/owners.go", Code: "\tj.endAhead()\n"},
	{File: "solver/owners.go", Code: "\tif j.owner.ahead.of != nil {\n\t\tj.takeOver(s)\n\t}\n"},
	{File: "solver/owners_test.go", Code: "\t\trequire.Empty(t, j.owner.ahead.results, \"results of %s are left\", j.id)\n"},
	{File: "solver/owners_test.go", Code: "\t\trequire.Empty(t, j.owner.ahead.chained, \"results are chained on %s\", j.id)\n"},
	{File: "solver/llbsolver/lazy.go", Code: "\tahead *solver.Ahead // also set by Solve, if the client receives the ref\n"},
	{
		File:   "solver/llbsolver/lazy.go",
		Code:   "\tvar bases []*solver.Job\n\tif client {\n\t\tbases = chainOnBases(j, req)\n",
		Before: "\tif client {\n\t\tchainOnBases(j, req)\n",
	},
	{File: "solver/llbsolver/lazy.go", Code: "\tif client && graphload.Ahead() {\n\t\treturn b.evaluateAhead(ctx, j, req, bases, res, err)\n\t}\n"},
	{File: "solver/llbsolver/lazy.go", Code: "\tif err := rp.lazy.ahead.Err(); err != nil {\n\t\treturn nil, err\n\t}\n"},
}

// diagnosticsHooks are the hooks that count lookups and log chains.
var diagnosticsHooks = []Hook{
	{File: "solver/owners.go", Code: "\tlookups lookupCounts\n"},
	{File: "solver/owners.go", Code: "\t\tlogChained(j, base, op)\n"},
}

// Modules are the commits for the modules of the seam list, by name. The name of
// BuildKit is empty.
var Modules = map[string][]Commit{
	"": Commits,
	"buildx": {
		{
			Title: "build: evaluate linked targets in any order where the daemon allows it",
			Paths: []string{"build"},
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
