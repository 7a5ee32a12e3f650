package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func results(statuses map[string]Status) Results {
	rs := Results{}
	for test, s := range statuses {
		rs[test] = &Result{Status: s}
	}
	return rs
}

func TestCandidates(t *testing.T) {
	for name, tc := range map[string]struct {
		up, gl map[string]Status
		want   []string
	}{
		"same": {
			up: map[string]Status{"A": Pass, "B": Fail, "C": Skip},
			gl: map[string]Status{"A": Pass, "B": Fail, "C": Skip},
		},
		"fails on ours": {
			up:   map[string]Status{"A": Pass, "B": Pass},
			gl:   map[string]Status{"A": Fail, "B": Pass},
			want: []string{"A"},
		},
		"only the subtest that made its parents fail": {
			up:   map[string]Status{"A": Pass, "A/b/worker=oci": Pass, "A/c": Pass},
			gl:   map[string]Status{"A": Fail, "A/b/worker=oci": Fail, "A/c": Pass},
			want: []string{"A/b/worker=oci"},
		},
		"a parent that fails by itself": {
			up:   map[string]Status{"A": Pass, "A/b": Pass},
			gl:   map[string]Status{"A": Fail, "A/b": Pass},
			want: []string{"A"},
		},
		"a crash": {
			up:   map[string]Status{"A": Pass, "B": Pass, "C": Pass},
			gl:   map[string]Status{"A": Pass, "B": Unfinished},
			want: []string{"C", "B"},
		},
		"what upstream skips": {
			up:   map[string]Status{"A": Skip, "B": Skip, "C": Skip, "D": Skip},
			gl:   map[string]Status{"A": Fail, "B": Unfinished, "C": Pass, "D": Skip},
			want: []string{"B", "A"},
		},
		"what upstream fails": {
			up: map[string]Status{"A": Fail, "B": Fail, "C": Fail},
			gl: map[string]Status{"A": Fail, "B": Pass, "C": Skip},
		},
		"a crash of ours in what upstream fails": {
			up:   map[string]Status{"A": Fail, "A/b": Fail, "C": Fail, "D": Skip},
			gl:   map[string]Status{"A": Unfinished, "A/b": Unfinished},
			want: []string{"D", "C", "A/b"},
		},
		"a crash of ours above what both fail": {
			up:   map[string]Status{"A": Fail, "A/b": Fail},
			gl:   map[string]Status{"A": Unfinished, "A/b": Fail},
			want: []string{"A"},
		},
		"a crash of upstream": {
			up:   map[string]Status{"A": Unfinished, "A/b": Fail, "A/c": Unfinished, "A/d": Unfinished, "E": Unfinished, "E/f": Pass},
			gl:   map[string]Status{"A": Fail, "A/b": Fail, "A/c": Pass, "A/d": Fail, "E": Fail, "E/f": Pass, "G": Fail},
			want: []string{"G", "E", "A/d"},
		},
		"a crash of upstream beside what both fail": {
			up: map[string]Status{"A": Unfinished, "A/b": Fail, "A/c": Unfinished},
			gl: map[string]Status{"A": Fail, "A/b": Fail, "A/c": Pass},
		},
		"what upstream does not come to": {
			up:   map[string]Status{"A": Fail, "B": Fail, "B/a": Fail},
			gl:   map[string]Status{"A": Fail, "A/b": Fail, "B": Fail, "B/a": Fail, "B/b": Fail},
			want: []string{"B/b"},
		},
		"a crash of both": {
			up: map[string]Status{"A": Unfinished},
			gl: map[string]Status{"A": Unfinished},
		},
		"an added test": {
			up:   map[string]Status{},
			gl:   map[string]Status{"A": Fail, "B": Pass, "C": Skip},
			want: []string{"A"},
		},
		"a test that ours skips": {
			up:   map[string]Status{"A": Pass},
			gl:   map[string]Status{"A": Skip},
			want: []string{"A"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, candidates(results(tc.up), results(tc.gl)))
		})
	}
}

func TestOthers(t *testing.T) {
	up := results(map[string]Status{"A": Fail, "A/b": Fail, "A/c": Pass, "D": Fail, "E": Skip, "G": Fail, "H": Unfinished, "I": Pass})
	gl := results(map[string]Status{"A": Pass, "A/b": Pass, "A/c": Pass, "D": Fail, "E": Pass, "F": Pass, "G": Skip, "H": Pass, "I": Fail})
	require.Equal(t, map[string]Verdict{"A/b": Improved, "G": Otherwise, "H": Improved}, others(up, gl))
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		up, gl []Status
		want   Verdict
	}{
		"always fails":             {[]Status{Pass, Pass, Pass, Pass}, []Status{Fail, Fail, Fail, Fail}, Regression},
		"fails at times":           {[]Status{Pass, Pass, Pass, Pass}, []Status{Fail, Pass, Fail, Pass}, Regression},
		"fails at times on both":   {[]Status{Pass, Fail, Pass, Pass}, []Status{Fail, Pass, Fail, Pass}, Unsteady},
		"a coin on both":           {[]Status{Pass, Fail, Pass, Pass}, []Status{Fail, Fail, Fail, Pass}, Unsteady},
		"passes alone on upstream": {[]Status{Pass, Pass, Fail, Pass}, []Status{Fail, Fail, Fail, Fail}, Regression},
		"fails again on both":      {[]Status{Pass, Fail, Fail, Fail}, []Status{Fail, Fail, Fail, Fail}, Unsteady},
		"failed once":              {[]Status{Pass, Pass, Pass, Pass}, []Status{Fail, Pass, Pass, Pass}, Unsteady},
		"not tried again":          {[]Status{Pass}, []Status{Fail}, Regression},
		"added and fails":          {[]Status{Missing, Missing}, []Status{Fail, Fail}, Regression},
		"added and fails at times": {[]Status{Missing, Missing, Missing}, []Status{Fail, Pass, Fail}, Regression},
		"added and failed once":    {[]Status{Missing, Missing}, []Status{Fail, Pass}, Unsteady},
		"not started once":         {[]Status{Missing, Fail, Fail}, []Status{Fail, Fail, Fail}, Unsteady},
		"skipped and fails":        {[]Status{Skip, Skip}, []Status{Fail, Fail}, Regression},
		"skipped and failed once":  {[]Status{Skip, Skip, Skip}, []Status{Fail, Skip, Pass}, Unsteady},
		"skips":                    {[]Status{Pass, Pass}, []Status{Skip, Skip}, Regression},
		"crashes":                  {[]Status{Pass, Pass}, []Status{Missing, Missing}, Regression},
		"crashes where it fails":   {[]Status{Fail, Fail, Fail}, []Status{Unfinished, Unfinished, Unfinished}, Regression},
		"crashed where it fails":   {[]Status{Fail, Fail, Fail}, []Status{Missing, Fail, Fail}, Unsteady},
		"upstream's run crashed":   {[]Status{Unfinished, Pass, Pass}, []Status{Fail, Fail, Fail}, Regression},
		"crashes later":            {[]Status{Missing, Fail, Fail}, []Status{Unfinished, Unfinished, Unfinished}, Regression},
		"never passes after that":  {[]Status{Fail, Pass, Pass}, []Status{Missing, Fail, Fail}, Regression},
		"fails after that crash":   {[]Status{Missing, Fail, Fail}, []Status{Fail, Fail, Fail}, Unsteady},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, judge(tc.up, tc.gl))
		})
	}
}

func TestUndecided(t *testing.T) {
	for name, tc := range map[string]struct {
		up, gl []Status
		want   bool
	}{
		"upstream fails at times":   {[]Status{Pass, Fail, Pass}, []Status{Fail, Fail, Fail}, true},
		"upstream ends at times":    {[]Status{Fail, Missing, Fail}, []Status{Missing, Missing, Missing}, true},
		"upstream passes":           {[]Status{Pass, Pass, Pass}, []Status{Fail, Fail, Fail}, false},
		"upstream passed only once": {[]Status{Pass, Fail, Fail}, []Status{Fail, Fail, Fail}, false},
		"both pass at times":        {[]Status{Pass, Pass, Fail}, []Status{Fail, Fail, Pass}, false},
		"added":                     {[]Status{Missing, Missing}, []Status{Fail, Fail}, false},
		"not tried again":           {[]Status{Pass}, []Status{Fail}, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, undecided(tc.up, tc.gl))
		})
	}
}

// newRunner returns a runner whose trees both have package p with the tests in src.
func newRunner(t *testing.T, src string) *runner {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "p"), 0o755))
	for name, src := range map[string]string{"go.mod": "module m\n", "p/p_test.go": src} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(src), 0o600))
	}
	r := &runner{dir: t.TempDir(), Options: Options{
		Trees:    [2]*assemble.Tree{{Dir: dir}, {Dir: dir}},
		Worker:   "oci",
		Output:   t.TempDir(),
		Timeout:  time.Minute,
		Progress: t.Logf,
	}}
	require.NoError(t, os.Mkdir(filepath.Join(r.Output, "logs"), 0o755))
	return r
}

// Tests that are flaky with upstream's daemon are retried until they pass with ours,
// up to a limit. All others are retried Retries times.
func TestRetry(t *testing.T) {
	r := newRunner(t, `package p
import ("os"; "path/filepath"; "strings"; "testing")
// run passes in these runs of the daemon that comes first in PATH.
func run(t *testing.T, upstream, graphload string) {
	flavor := filepath.Base(strings.SplitN(os.Getenv("PATH"), ":", 2)[0])
	name := flavor + t.Name()
	dt, _ := os.ReadFile(name)
	os.WriteFile(name, append(dt, '.'), 0o600)
	passes := upstream
	if flavor == "graphload" { passes = graphload }
	if !strings.Contains(","+passes+",", ","+string(rune('a'+len(dt)))+",") { t.Fail() }
}
func TestPasses(t *testing.T) { run(t, "a,b,c,d", "") }
func TestSometimes(t *testing.T) { run(t, "a,c", "h") }
func TestOnUpstreamOnly(t *testing.T) { run(t, "a,c", "") }
`)
	r.Retries = 3
	res, err := r.compare(t.Context(), testPackage{name: "p", daemons: true})
	require.NoError(t, err)
	type outcome struct {
		verdict Verdict
		runs    int
	}
	got := map[string]outcome{}
	for _, d := range res.differences {
		require.Len(t, d.Graphload, len(d.Upstream))
		got[d.Test] = outcome{d.Verdict, len(d.Upstream)}
	}
	require.Equal(t, map[string]outcome{
		"TestPasses":         {Regression, 4},
		"TestSometimes":      {Unsteady, 8},
		"TestOnUpstreamOnly": {Regression, 4 + furtherTries},
	}, got)
}

const events = `{"Action":"start","Package":"client"}
{"Action":"run","Package":"client","Test":"TestIntegration"}
{"Action":"run","Package":"client","Test":"TestIntegration/TestA/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/TestA/worker=oci","Output":"what it says\n"}
{"Action":"pass","Package":"client","Test":"TestIntegration/TestA/worker=oci","Elapsed":1.5}
{"Action":"run","Package":"client","Test":"TestIntegration/TestB/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/TestB/worker=oci","Output":"why\n"}
{"Action":"fail","Package":"client","Test":"TestIntegration/TestB/worker=oci","Elapsed":2}
{"Action":"run","Package":"client","Test":"TestIntegration/TestC/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/TestC/worker=oci","Output":"panic: no\n"}
not an event
{"Action":"output","Package":"client","Output":"FAIL\n"}
{"Action":"fail","Package":"client","Elapsed":9}
`

func TestParse(t *testing.T) {
	rs := Results{}
	var ended []Status
	output, err := rs.parse(strings.NewReader(events), func(s Status) { ended = append(ended, s) })
	require.NoError(t, err)
	require.Equal(t, "not an event\nFAIL\n", output)
	require.Equal(t, []Status{Pass, Fail}, ended)
	require.Equal(t, Results{
		"TestIntegration":                  {Status: Unfinished},
		"TestIntegration/TestA/worker=oci": {Status: Pass, Seconds: 1.5},
		"TestIntegration/TestB/worker=oci": {Status: Fail, Seconds: 2, Output: "why\n"},
		"TestIntegration/TestC/worker=oci": {Status: Unfinished, Output: "panic: no\n"},
	}, rs)
	require.Equal(t, Counts{Pass: 1, Fail: 2}, rs.counts())
}

func TestAgain(t *testing.T) {
	require.Equal(t, []string{`^TestB$`, `^TestA$/^b\(c\)\|d$/^worker=oci$`, `^TestB$`, `^TestA$/^b\(c\)\|d$/^worker=oci$`}, again([]string{
		"TestB/x", "TestA/b(c)|d/worker=oci/netmode=host/1", "TestB/y", "TestA/b(c)|d/worker=oci",
	}))
}

// A test that ends its process must not affect the verdicts of the others.
func TestAgainCrash(t *testing.T) {
	r := newRunner(t, `package p
import "testing"
func TestA(t *testing.T) { t.Run("b", func(*testing.T) {}) }
func TestB(t *testing.T) { panic("no") }
func TestC(t *testing.T) { t.Fatal("C fails") }
func TestD(*testing.T) {}
`)
	p := testPackage{name: "p"}
	bin := filepath.Join(r.dir, "p.test")
	require.NoError(t, p.compile(t.Context(), r.Trees[Graphload], bin))
	rs, _, finished, err := r.again(t.Context(), p, Graphload, bin, []string{"TestA/b", "TestB", "TestC", "TestD"})
	require.NoError(t, err)
	statuses := map[string]Status{}
	for name, result := range rs {
		statuses[name] = result.Status
	}
	require.Equal(t, map[string]Status{"TestA": Pass, "TestA/b": Pass, "TestB": Unfinished, "TestC": Fail, "TestD": Pass}, statuses)
	require.False(t, finished)
	require.Contains(t, rs["TestB"].Output, "panic: no")
	require.Contains(t, rs["TestC"].Output, "C fails")
}

// A run that fails leaves no complete report.
func TestNotComplete(t *testing.T) {
	bin := t.TempDir()
	opt := Options{
		Trees:  [2]*assemble.Tree{{}, {}},
		Bin:    [2]string{bin, bin},
		Suites: []string{"client", "solver"}, Run: "TestA", Worker: "oci", Race: true,
		Output: t.TempDir(), Progress: t.Logf,
	}
	_, err := Run(t.Context(), opt)
	require.ErrorContains(t, err, "no buildkitd to test, build it first")
	require.NoFileExists(t, filepath.Join(opt.Output, "conformance.md"))

	for _, name := range []string{"buildkitd", "buildctl"} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho $0 version 1\n"), 0o755)) //nolint:gosec // it is a program
	}
	r, err := newReport(t.Context(), opt)
	require.NoError(t, err)
	require.NoError(t, r.Write(opt.Output))
	read := func(name string) string {
		dt, err := os.ReadFile(filepath.Join(opt.Output, name))
		require.NoError(t, err)
		return string(dt)
	}
	require.Contains(t, read("conformance.md"), "client, solver; tests TestA; race detector. `"+bin+"/buildkitd version 1`")
	require.Contains(t, read("conformance.md"), "**Not complete.**")
	require.Contains(t, read("conformance.json"), `"complete": false`)

	logs := filepath.Join(opt.Output, "logs")
	for _, name := range []string{"solver_pb-upstream.log", "client-graphload-again1.log"} {
		require.NoError(t, os.WriteFile(filepath.Join(logs, name), nil, 0o600))
	}
	other := filepath.Join(logs, "TestBake-graphload.log") // as make integration writes it, for --output build
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	require.NoError(t, Clear(opt.Output)) // before the next run
	left, err := os.ReadDir(logs)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.NoError(t, os.Remove(other))
	require.NoError(t, Clear(opt.Output))
	left, err = os.ReadDir(opt.Output)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestChangedPackages(t *testing.T) {
	changed, tests := changedPackages(&assemble.Tree{
		Changed: map[string][]byte{"solver/jobs.go": nil},
		Added:   []string{"solver/owners.go", "session/any.go", "client/lazy_test.go"},
	})
	require.Equal(t, map[string]struct{}{"solver": {}, "session": {}}, changed)
	require.Equal(t, map[string]struct{}{"client": {}}, tests)
}

func TestSelect(t *testing.T) {
	all, err := Select(nil)
	require.NoError(t, err)
	require.Equal(t, Suites, all)

	some, err := Select([]string{"./utility/...", "client", "./client"})
	require.ErrorContains(t, err, `no suite "utility"`)
	require.Nil(t, some)

	some, err = Select([]string{"./util/...", "client", "solver/...", "./client/"})
	require.NoError(t, err)
	require.Equal(t, []string{"client", "solver", "util"}, some)
}

func TestSuiteOf(t *testing.T) {
	for pkg, suite := range map[string]string{
		"client":                         "client",
		"client/llb":                     "client",
		"frontend":                       "frontend",
		"frontend/attestations":          "frontend",
		"frontend/dockerfile/parser":     "frontend/dockerfile",
		"frontend/gateway/client":        "frontend/gateway",
		"util/testutil/integration/more": "util",
		"clients":                        "",
	} {
		require.Equal(t, suite, suiteOf(pkg, Suites), pkg)
	}
}

func TestHarnessTests(t *testing.T) {
	dir := t.TempDir()
	for name, src := range map[string]string{
		"a_test.go": `package p
import "github.com/moby/buildkit/util/testutil/integration"
func TestDirectIntegration(t *testing.T) { integration.Run(t, nil) }
func TestUnit(t *testing.T) { helper(); TestUnit(t) }
func all(t *testing.T) { if true { func() { integration.Run(t, nil) }() } }
func testOne(t *testing.T, sb integration.Sandbox) {}
`,
		"b_test.go": `package p
func TestThroughHelper(t *testing.T) { some(t) }
func some(t *testing.T) { all(t) }
func TestOther(t *testing.T) { integration.Run(t) }
func helper() {}
`,
		"c.go": "package p\nfunc Test() { all(nil) }\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(src), 0o600))
	}
	tests, err := harnessTests(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"TestDirectIntegration", "TestThroughHelper"}, tests)
}

func TestArgs(t *testing.T) {
	for name, tc := range map[string]struct {
		worker, pattern string
		want            []string
	}{
		"all":                  {"oci", ".", []string{"-test.run=.", "-test.skip=.*/.*/^worker=(containerd|dockerd)"}},
		"some with containerd": {"containerd", "TestA/b", []string{"-test.run=TestA/b", "-test.skip=.*/.*/^worker=(oci|dockerd)"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &runner{Options: Options{Worker: tc.worker}}
			require.Equal(t, tc.want, r.args(tc.pattern))
		})
	}
}

func TestFinished(t *testing.T) {
	require.True(t, finished("PASS\n", 0))
	require.True(t, finished("some output\nFAIL\n", 1))
	require.False(t, finished("panic: test timed out after 2h0m0s\n", 2))
	require.False(t, finished("cannot listen\n", 1), "log.Fatal")
	require.False(t, finished("", -1), "killed")
}

func TestVoid(t *testing.T) {
	const sandbox = "TestIntegration/TestA/worker=oci"
	for name, tc := range map[string]struct {
		up, gl  map[string]Status
		diffs   []Difference
		crashed [2]bool
		again   bool
		want    string
	}{
		"tests that fail everywhere beside some that pass": {
			up: map[string]Status{sandbox: Fail, "TestIntegration/TestB/worker=oci": Pass},
			gl: map[string]Status{sandbox: Fail, "TestIntegration/TestB/worker=oci": Pass},
		},
		"all fail, but not the unit tests": {
			up:   map[string]Status{sandbox: Fail, "TestUnit": Pass},
			gl:   map[string]Status{sandbox: Fail, "TestUnit": Pass},
			want: "client: none of the 1 tests with daemons passes on upstream's",
		},
		"the harness fails before there is a test": {
			up:   map[string]Status{"TestIntegration": Fail, "TestUnit": Pass},
			gl:   map[string]Status{"TestIntegration": Fail, "TestUnit": Pass},
			want: "client: none of the 1 tests with daemons passes on upstream's",
		},
		"a suite that only has tests that are skipped": {
			up: map[string]Status{sandbox: Skip, "TestUnit": Pass},
			gl: map[string]Status{sandbox: Skip, "TestUnit": Pass},
		},
		"tests that only ours has": {
			gl: map[string]Status{sandbox: Pass},
		},
		"nothing": {
			want: "no test was run",
		},
		"a crash of both": {
			up:      map[string]Status{sandbox: Pass},
			gl:      map[string]Status{sandbox: Pass},
			crashed: [2]bool{true, true},
			want:    "client: the test process did not come to its end with either",
		},
		"a crash of upstream's": { // tests that it did not reach are retried, see TestCandidates
			up:      map[string]Status{sandbox: Pass},
			gl:      map[string]Status{sandbox: Pass},
			crashed: [2]bool{true, false},
		},
		"a crash of ours": { // the same
			up:      map[string]Status{sandbox: Pass},
			gl:      map[string]Status{sandbox: Unfinished},
			diffs:   []Difference{{Test: sandbox, Verdict: Unsteady}},
			crashed: [2]bool{false, true},
		},
		"a crash of ours after its tests": {
			up:      map[string]Status{sandbox: Pass},
			gl:      map[string]Status{sandbox: Pass},
			diffs:   []Difference{{Test: "TestUnit", Verdict: Improved}},
			crashed: [2]bool{false, true},
			want:    "client: the test process did not come to its end with ours, after its tests had",
		},
		"a crash of ours whenever tests run together": {
			up:      map[string]Status{sandbox: Pass},
			gl:      map[string]Status{sandbox: Unfinished},
			diffs:   []Difference{{Test: sandbox, Verdict: Unsteady}},
			crashed: [2]bool{false, true},
			again:   true,
			want:    "client: the tests that differ end the process with ours whenever they run together",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Report{}
			r.add(&packageResult{
				testPackage: testPackage{name: "client", suite: "client", daemons: true, harness: []string{"TestIntegration"}},
				results:     [2]Results{results(tc.up), results(tc.gl)},
				finished:    [2]bool{!tc.crashed[Upstream], !tc.crashed[Graphload]},
				differences: tc.diffs,
				crash:       tc.again,
			})
			r.judge()
			if tc.want == "" {
				require.Empty(t, r.Void)
				return
			}
			require.Len(t, r.Void, 1)
			require.Contains(t, r.Void[0], tc.want)
			require.Contains(t, r.Markdown(), "**Void.** "+tc.want)
		})
	}
}

func TestReport(t *testing.T) {
	r := &Report{Version: "v0.34.2", Worker: "oci", Complete: true}
	r.add(&packageResult{
		testPackage: testPackage{name: "solver", suite: "solver", changed: true},
		results: [2]Results{
			results(map[string]Status{"A": Pass, "A/b": Pass, "A/c": Pass, "D": Fail, "E": Skip}),
			results(map[string]Status{"A": Fail, "A/b": Fail, "A/c": Pass, "D": Pass, "E": Skip}),
		},
		differences: []Difference{
			{Package: "solver", Test: "A/b", Verdict: Regression, Upstream: []Status{Pass, Pass}, Graphload: []Status{Fail, Fail}, Output: "why\x00"},
			{Package: "solver", Test: "D", Verdict: Improved, Upstream: []Status{Fail}, Graphload: []Status{Pass}},
		},
		finished: [2]bool{true, true},
		took:     [2]time.Duration{time.Minute, 61500 * time.Millisecond},
	})
	r.add(&packageResult{
		testPackage: testPackage{name: "solver/errdefs", suite: "solver"},
		results:     [2]Results{results(map[string]Status{"A": Pass}), results(map[string]Status{"A": Pass})},
		finished:    [2]bool{true, true},
		took:        [2]time.Duration{time.Second, time.Second},
	})
	r.judge()
	require.Empty(t, r.Void)
	r.add(&packageResult{testPackage: testPackage{name: "solver/broken", suite: "solver", changed: true}, broken: errors.New("failed to compile")})
	require.Equal(t, []string{"failed to compile"}, r.Void)
	require.Len(t, r.Regressions(), 1)
	require.Equal(t, &SuiteCount{
		Name: "solver", Packages: 3, Same: 1,
		Upstream: Counts{Pass: 3, Fail: 1, Skip: 1}, Graphload: Counts{Pass: 3, Fail: 1, Skip: 1},
		UpstreamSeconds: 61, GraphloadSeconds: 62.5,
	}, r.suite("solver"))

	dir := t.TempDir()
	require.NoError(t, r.Write(dir))
	md, err := os.ReadFile(filepath.Join(dir, "conformance.md"))
	require.NoError(t, err)
	require.Contains(t, string(md), "| solver | 3 | 3 | 1 | 1 | 1m1s | 3 | 1 | 1 | 1m3s | 1 |\n")
	require.Contains(t, string(md), "| solver A/b | pass pass | fail fail | regression |\n")
	dt, err := os.ReadFile(filepath.Join(dir, "conformance.json"))
	require.NoError(t, err)
	var read Report
	require.NoError(t, json.Unmarshal(dt, &read))
	require.Equal(t, r.Differences, read.Differences)
	require.NoError(t, err)
}

const raceReport = `==================
WARNING: DATA RACE
Write at 0x00c0001 by goroutine 7:
  github.com/moby/buildkit/solver.(*state).b()
      /src/solver/jobs.go:10 +0x1

Previous read at 0x00c0001 by goroutine 8:
  github.com/moby/buildkit/solver.(*state).a()
      /src/solver/jobs.go:20 +0x1

Goroutine 7 (running) created at:
  main.main()
      /src/cmd/buildkitd/main.go:5 +0x1
==================
`

func TestRaces(t *testing.T) {
	const b, a = "github.com/moby/buildkit/solver.(*state).b", "github.com/moby/buildkit/solver.(*state).a"
	through := func(function, file string) string {
		frame := "  " + function + "()\n      " + file + ":7 +0x1\n"
		return strings.Replace(raceReport, "\n\nPrevious", "\n"+frame+"\nPrevious", 1)
	}
	for name, tc := range map[string]struct {
		up, gl string
		places []string // of new races
		other  []string
	}{
		"the same": {up: raceReport, gl: raceReport + raceReport},
		"in upstream's code alone": {
			gl:    raceReport,
			other: []string{a + " and " + b},
		},
		"in an added file": {
			up:     raceReport,
			gl:     strings.NewReplacer("(*state).b", "(*ownerIndex).b", "/src/solver/jobs.go:10", "/src/solver/owners.go:10").Replace(raceReport),
			places: []string{"github.com/moby/buildkit/solver.(*ownerIndex).b and " + a},
		},
		"called from an added file": {
			gl:     through("github.com/moby/buildkit/solver.(*Job).Register", "github.com/moby/buildkit/solver/owners.go"),
			places: []string{a + " and " + b},
		},
		"started by the change": {
			gl:     strings.Replace(raceReport, "main.main()\n      /src/cmd/buildkitd/main.go:5", "github.com/moby/buildkit/solver.(*Job).Register()\n      /src/solver/owners.go:9", 1),
			places: []string{a + " and " + b},
		},
		"called from the change too, and seen with upstream": {
			up: raceReport,
			gl: through("github.com/moby/buildkit/solver.(*Job).Register", "github.com/moby/buildkit/solver/owners.go"),
		},
		"in a map": {
			up: strings.Replace(raceReport, "8:\n", "8:\n  runtime.mapaccess1_faststr()\n      /go/src/runtime/map.go:13 +0x1\n  internal/runtime/maps.(*Map).x()\n      /go/src/m.go:13 +0x1\n", 1),
			gl: strings.NewReplacer("8:\n", "8:\n  runtime.mapaccess1_faststr()\n      /go/src/runtime/map.go:13 +0x1\n", "(*state).a", "newEdge", "jobs.go:20", "owners.go:20").Replace(raceReport),
			// the place is the function that uses the map
			places: []string{b + " and github.com/moby/buildkit/solver.newEdge"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			up, gl := t.TempDir(), t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(up, "race.1"), []byte(tc.up), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(gl, "race.2"), []byte(tc.gl), 0o600))
			races, err := newRaces(up, gl, []string{"solver/owners.go"})
			require.NoError(t, err)
			places := func(races []Race) (places []string) {
				for _, r := range races {
					require.Contains(t, r.Report, "DATA RACE")
					places = append(places, r.Place)
				}
				return places
			}
			require.Equal(t, tc.places, places(races.New))
			require.Equal(t, tc.other, places(races.Other))
		})
	}
}
