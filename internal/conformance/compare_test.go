package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/assemble"
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
		"what upstream skips or fails": {
			up: map[string]Status{"A": Skip, "B": Fail, "C": Unfinished},
			gl: map[string]Status{"A": Fail, "B": Unfinished, "C": Missing},
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

func TestImproved(t *testing.T) {
	up := results(map[string]Status{"A": Fail, "A/b": Fail, "A/c": Pass, "D": Fail, "E": Skip})
	gl := results(map[string]Status{"A": Pass, "A/b": Pass, "A/c": Pass, "D": Fail, "E": Pass, "F": Pass})
	require.Equal(t, []string{"A/b"}, improved(up, gl))
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
		"crashes":                  {[]Status{Pass, Pass}, []Status{Missing, Missing}, Regression},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, judge(tc.up, tc.gl))
		})
	}
}

const events = `{"Action":"start","Package":"client"}
{"Action":"run","Package":"client","Test":"TestIntegration"}
{"Action":"run","Package":"client","Test":"TestIntegration/slice=1-2/TestA/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/slice=1-2/TestA/worker=oci","Output":"what it says\n"}
{"Action":"pass","Package":"client","Test":"TestIntegration/slice=1-2/TestA/worker=oci","Elapsed":1.5}
{"Action":"run","Package":"client","Test":"TestIntegration/slice=1-2/TestB/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/slice=1-2/TestB/worker=oci","Output":"why\n"}
{"Action":"fail","Package":"client","Test":"TestIntegration/slice=1-2/TestB/worker=oci","Elapsed":2}
{"Action":"run","Package":"client","Test":"TestIntegration/slice=1-2/TestC/worker=oci"}
{"Action":"output","Package":"client","Test":"TestIntegration/slice=1-2/TestC/worker=oci","Output":"panic: no\n"}
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
	require.Equal(t, `^TestA$/^b\(c\)\|d$/^worker=oci$|^TestB$`, again([]string{
		"TestB/x", "TestA/b(c)|d/worker=oci/netmode=host/1", "TestB/y", "TestA/b(c)|d/worker=oci",
	}))
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

	some, err := Select([]string{"./util/...", "client", "./client"})
	require.ErrorContains(t, err, `no suite "util/..."`)
	require.Nil(t, some)

	some, err = Select([]string{"./util", "client", "./client/"})
	require.NoError(t, err)
	require.Equal(t, []string{"client", "util"}, some)
}

func TestReport(t *testing.T) {
	r := &Report{Version: "v0.34.2", Worker: "oci"}
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
	})
	r.add(&packageResult{
		testPackage: testPackage{name: "solver/errdefs", suite: "solver"},
		results:     [2]Results{results(map[string]Status{"A": Pass}), results(map[string]Status{"A": Pass})},
	})
	require.Len(t, r.Regressions(), 1)
	require.Equal(t, &SuiteCount{
		Name: "solver", Packages: 2, Same: 1,
		Upstream: Counts{Pass: 3, Fail: 1, Skip: 1}, Graphload: Counts{Pass: 3, Fail: 1, Skip: 1},
	}, r.suite("solver"))

	dir := t.TempDir()
	require.NoError(t, r.Write(dir))
	md, err := os.ReadFile(filepath.Join(dir, "conformance.md"))
	require.NoError(t, err)
	require.Contains(t, string(md), "| solver | 2 | 3 | 1 | 1 | 3 | 1 | 1 | 1 |\n")
	require.Contains(t, string(md), "| solver A/b | pass pass | fail fail | regression |\n")
	dt, err := os.ReadFile(filepath.Join(dir, "conformance.json"))
	require.NoError(t, err)
	var read Report
	require.NoError(t, json.Unmarshal(dt, &read))
	require.Equal(t, r.Differences, read.Differences)
	junit, err := os.ReadFile(filepath.Join(dir, "conformance.xml"))
	require.NoError(t, err)
	require.Contains(t, string(junit), `<testsuite name="solver" tests="4" failures="1" skipped="1">`)
	require.Contains(t, string(junit), `<failure message="upstream: pass pass; graphload: fail fail">why`)
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
==================
`

func TestRaces(t *testing.T) {
	up, gl := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(up, "race.1"), []byte(raceReport), 0o644))
	other := strings.ReplaceAll(raceReport, "(*state).b", "(*ownerIndex).b")
	require.NoError(t, os.WriteFile(filepath.Join(gl, "race.2"), []byte(raceReport+other+other), 0o644))
	races, err := newRaces(up, gl)
	require.NoError(t, err)
	require.Equal(t, 1, races.Upstream)
	require.Len(t, races.New, 1)
	require.Equal(t, "github.com/moby/buildkit/solver.(*ownerIndex).b and github.com/moby/buildkit/solver.(*state).a", races.New[0].Place)
}
