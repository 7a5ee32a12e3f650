package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// Report is the result of a run.
type Report struct {
	Version string `json:"version"`
	Worker  string `json:"worker"`
	// Selection names the suites and tests that the user selected
	Selection string    `json:"selection"`
	Daemons   [2]string `json:"daemons"` // output of --version
	Started   time.Time `json:"started"`
	// Complete is set when the run has finished
	Complete    bool          `json:"complete"`
	Suites      []*SuiteCount `json:"suites"`
	Differences []Difference  `json:"differences"`
	Races       Races         `json:"races"`
	// Void says why a run proves nothing, or not everything, about a suite or package
	Void  []string `json:"void,omitempty"`
	Tests []Test   `json:"tests"`
}

// SuiteCount has the numbers of packages and tests of a suite.
type SuiteCount struct {
	Name string `json:"name"`
	// Packages, and how many of them have the same source code in both trees and
	// start no daemon, so that the run tests them once
	Packages  int    `json:"packages"`
	Same      int    `json:"same"`
	Upstream  Counts `json:"upstream"`
	Graphload Counts `json:"graphload"`
	// Harness counts the tests of upstream's harness, which start daemons
	Harness Counts `json:"harness"`
	// wall time of the first run. Packages that ran once count for both.
	UpstreamSeconds  float64 `json:"upstreamSeconds"`
	GraphloadSeconds float64 `json:"graphloadSeconds"`
}

// Test is a test without subtests.
type Test struct {
	Package   string  `json:"package"`
	Name      string  `json:"name"`
	Upstream  Status  `json:"upstream"`
	Graphload Status  `json:"graphload"`
	Seconds   float64 `json:"seconds"` // with our daemon
}

func (c Counts) String() string {
	return fmt.Sprintf("%d pass, %d fail, %d skip", c.Pass, c.Fail, c.Skip)
}

func newReport(ctx context.Context, opt Options) (*Report, error) {
	r := &Report{
		Version: opt.Trees[Graphload].Version, Worker: opt.Worker, Started: time.Now().UTC().Truncate(time.Second),
		Selection: strings.Join(opt.Suites, ", "),
	}
	if opt.Run != "" {
		r.Selection += "; tests " + opt.Run
	}
	if opt.Race {
		r.Selection += "; race detector"
	}
	for i, bin := range opt.Bin {
		dt, err := exec.CommandContext(ctx, filepath.Join(bin, "buildkitd"), "--version").Output()
		if err != nil {
			return nil, errors.Wrapf(err, "failed to ask %s for its version", filepath.Join(bin, "buildkitd"))
		}
		r.Daemons[i] = strings.TrimSpace(string(dt))
	}
	return r, nil
}

// suite returns the counts of a suite, which are zero at first.
func (r *Report) suite(name string) *SuiteCount {
	for _, s := range r.Suites {
		if s.Name == name {
			return s
		}
	}
	s := &SuiteCount{Name: name}
	r.Suites = append(r.Suites, s)
	return s
}

func (r *Report) add(res *packageResult) {
	s := r.suite(res.suite)
	s.Packages++
	if res.broken != nil {
		r.Void = append(r.Void, res.broken.Error())
		return
	}
	if !res.changed && !res.daemons {
		s.Same++
	}
	up, gl := res.results[Upstream], res.results[Graphload]
	s.Upstream.sum(up.counts())
	s.Graphload.sum(gl.counts())
	s.Harness.sum(up.harness(res.harness))
	s.UpstreamSeconds += res.took[Upstream].Seconds()
	s.GraphloadSeconds += res.took[Graphload].Seconds()
	if !res.finished[Upstream] && !res.finished[Graphload] {
		r.Void = append(r.Void, fmt.Sprintf("%s: the test process did not come to its end with either: what it left out was not compared", res.name))
	}
	worse := func(d Difference) bool { return d.Verdict == Regression || d.Verdict == Unsteady }
	switch {
	case res.crash:
		r.Void = append(r.Void, fmt.Sprintf("%s: the tests that differ end the process with ours whenever they run together, and not with upstream's", res.name))
	case res.finished[Upstream] && !res.finished[Graphload] && !slices.ContainsFunc(res.differences, worse):
		r.Void = append(r.Void, fmt.Sprintf("%s: the test process did not come to its end with ours, after its tests had", res.name))
	}
	r.Differences = append(r.Differences, res.differences...)
	above := parents(up, gl)
	for _, name := range names(up, gl) {
		if _, ok := above[name]; ok {
			continue
		}
		t := Test{Package: res.name, Name: name, Upstream: up.status(name), Graphload: gl.status(name)}
		if g := gl[name]; g != nil {
			t.Seconds = g.Seconds
		}
		r.Tests = append(r.Tests, t)
	}
}

// judge looks for reasons to call the report void, after all packages have been added.
// Tests that fail with both daemons compare equal, so without it a broken registry,
// worker or harness would look like a clean run.
func (r *Report) judge() {
	for _, s := range r.Suites {
		if s.Harness.Pass == 0 && s.Harness.Fail > 0 {
			r.Void = append(r.Void, fmt.Sprintf("%s: none of the %d tests with daemons passes on upstream's: that they fail on ours too says nothing", s.Name, s.Harness.Fail))
		}
	}
	if len(r.Tests) == 0 {
		r.Void = append(r.Void, "no test was run")
	}
}

// total returns the sum of the suites.
func (r *Report) total() SuiteCount {
	total := SuiteCount{Name: "all"}
	for _, s := range r.Suites {
		total.Packages += s.Packages
		total.Same += s.Same
		total.Upstream.sum(s.Upstream)
		total.Graphload.sum(s.Graphload)
		total.Harness.sum(s.Harness)
		total.UpstreamSeconds += s.UpstreamSeconds
		total.GraphloadSeconds += s.GraphloadSeconds
	}
	return total
}

// Regressions returns the differences that are regressions.
func (r *Report) Regressions() []Difference {
	return slices.Collect(func(yield func(Difference) bool) {
		for _, d := range r.Differences {
			if d.Verdict == Regression && !yield(d) {
				return
			}
		}
	})
}

// Failures returns what is wrong with the change, or with the run.
func (r *Report) Failures() []string {
	failures := slices.Clone(r.Void)
	if n := len(r.Regressions()); n > 0 {
		failures = append(failures, fmt.Sprintf("%d tests pass with upstream's daemon only", n))
	}
	if n := len(r.Races.New); n > 0 {
		failures = append(failures, fmt.Sprintf("%d data races that upstream's daemon does not have", n))
	}
	return failures
}

// Clear removes the reports and logs of an earlier run, so that they do not pass for
// those of a later run that fails. It leaves other files of the user alone.
func Clear(dir string) error {
	var old []string
	for _, name := range []string{"conformance.json", "conformance.md"} {
		old = append(old, filepath.Join(dir, name))
	}
	logs := filepath.Join(dir, "logs")
	for _, flavor := range flavorNames {
		names, err := filepath.Glob(filepath.Join(logs, "[a-z]*-"+flavor+"*.log")) // see runner.log
		if err != nil {
			return errors.WithStack(err)
		}
		old = append(old, names...)
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.WithStack(err)
		}
	}
	_ = os.Remove(logs) // if it is empty
	return nil
}

// Write writes the report as Markdown and JSON.
func (r *Report) Write(dir string) error {
	js, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := files.Write(filepath.Join(dir, "conformance.json"), append(js, '\n'), 0o644); err != nil {
		return err
	}
	return files.Write(filepath.Join(dir, "conformance.md"), []byte(r.Markdown()), 0o644)
}

// title returns a heading that says what was tested.
func (r *Report) title() string {
	if r.Worker == "" {
		return "Docker engine " + r.Version
	}
	return fmt.Sprintf("BuildKit %s, %s worker", r.Version, r.Worker)
}

// Markdown returns the table of the suites and the list of the differences.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", r.title())
	fmt.Fprintf(&b, "%s: %s. `%s` and `%s`.\n\n", r.Started.Format(time.RFC3339), r.Selection, r.Daemons[Upstream], r.Daemons[Graphload])
	if !r.Complete {
		fmt.Fprint(&b, "**Not complete.** The run has not come to its end: what is missing was not compared.\n\n")
	}
	for _, v := range r.Void {
		fmt.Fprintf(&b, "**Void.** %s\n\n", v)
	}
	fmt.Fprintln(&b, "| suite | packages | upstream pass | fail | skip | time | graphload pass | fail | skip | time | regressions |")
	fmt.Fprintln(&b, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	row := func(s *SuiteCount, regressions int) {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %s | %d | %d | %d | %s | %d |\n", s.Name, s.Packages,
			s.Upstream.Pass, s.Upstream.Fail, s.Upstream.Skip, wall(s.UpstreamSeconds),
			s.Graphload.Pass, s.Graphload.Fail, s.Graphload.Skip, wall(s.GraphloadSeconds), regressions)
	}
	var suites []string
	for _, s := range r.Suites {
		suites = append(suites, s.Name)
	}
	for _, s := range r.Suites {
		n := 0
		for _, d := range r.Regressions() {
			if suiteOf(d.Package, suites) == s.Name {
				n++
			}
		}
		row(s, n)
	}
	total := r.total()
	row(&total, len(r.Regressions()))
	fmt.Fprint(&b, "\nTests with others below are not counted. Time is that of the first run, without what was tried again.")
	if total.Same > 0 {
		fmt.Fprintf(&b, " %d packages have the same source code in both trees and start no daemon: they were run once, and count for both.", total.Same)
	}
	fmt.Fprintln(&b)
	for _, race := range r.Races.New {
		fmt.Fprintf(&b, "\nData race, not seen with upstream: %s\n\n```\n%s\n```\n", race.Place, race.Report)
	}
	for _, race := range r.Races.Other {
		fmt.Fprintf(&b, "\nData race in upstream's code alone, not seen with upstream in this run: %s\n\n```\n%s\n```\n", race.Place, race.Report)
	}
	if len(r.Differences) == 0 {
		return b.String()
	}
	fmt.Fprint(&b, "\n| test | upstream | graphload | verdict |\n|---|---|---|---|\n")
	for _, d := range r.Differences {
		fmt.Fprintf(&b, "| %s %s | %s | %s | %s |\n", d.Package, d.Test, join(d.Upstream), join(d.Graphload), d.Verdict)
	}
	return b.String()
}

func wall(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

func join(statuses []Status) string {
	s := make([]string, len(statuses))
	for i, st := range statuses {
		s[i] = string(st)
	}
	return strings.Join(s, " ")
}

// writeLog writes the output of the tests that did not pass.
func writeLog(path string, results Results, output string) error {
	f, err := os.Create(path)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, test := range names(results) {
		fmt.Fprintf(f, "=== %s %s\n%s", results[test].Status, test, results[test].Output)
	}
	fmt.Fprintf(f, "=== package\n%s", output)
	return errors.WithStack(f.Close())
}
