package main

import (
	"bufio"
	"context"
	"encoding/json"
	stderrors "errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

// clientTests are the tests of a Go client in which the test decides the order
// of evaluation, and which can run on either daemon.
const clientTests = "^(TestChildFirst|TestOrders|TestEvaluatedBy|TestIsolation|TestCredentials|TestBaseGone)$"

// strangerTests compare builds beside an unrelated one on both daemons, so a row
// of them passes on both or on none.
const strangerTests = "^TestStrangers$"

// How the table calls the clients of these tests.
const (
	goClient = "Go client"
	beside   = "beside an unrelated build"
)

// table is what passes with which client, on upstream's daemon and on this one.
type table struct {
	version   string
	date      time.Time
	runs      int
	versions  []string // of buildx
	scenarios []string // only these, all of them and the Go client for none
	programs  []string // versions of what takes part beside buildx
	complete  bool     // everything has run
	rows      []tableRow
}

// tableFile is the table as JSON.
type tableFile struct {
	Upstream string     `json:"upstream"`
	Programs []string   `json:"programs"`
	Complete bool       `json:"complete"`
	Rows     []tableRow `json:"rows"`
}

// tableRow is one scenario with one client.
type tableRow struct {
	Scenario string                 `json:"scenario"`
	Client   string                 `json:"client"`
	Date     string                 `json:"date"`
	Runs     int                    `json:"runs"`
	Passed   map[testbed.Flavor]int `json:"passed"`
}

// fill runs everything and writes the table after each part, so that nothing is
// lost when it is interrupted; it says then that it is not complete. It fails when
// something failed on the daemon that must not fail.
func (t *table) fill(ctx context.Context, opt assemble.Options, path string) error {
	scenarios := testbed.Scenarios
	var err error
	if err := testbed.FetchDocker(ctx); err != nil {
		return err
	}
	if t.programs, err = testbed.Programs(ctx); err != nil {
		return err
	}
	if len(t.scenarios) > 0 {
		if scenarios, err = testbed.FindScenarios(t.scenarios); err != nil {
			return err
		}
		if err := t.read(path); err != nil {
			return err
		}
	}
	complete := t.complete // as it was, if only some scenarios are run
	t.complete = false
	d := &demo{runs: t.runs, scenarios: scenarios, versions: t.versions, columns: flavorColumns(testbed.Flavors), together: true}
	d.done = func(scenario testbed.Scenario) error {
		for _, v := range t.versions {
			if !scenario.RunsWith(v) {
				continue
			}
			row := tableRow{Scenario: scenario.About, Client: "buildx " + v, Runs: t.runs, Passed: map[testbed.Flavor]int{}}
			for _, flavor := range testbed.Flavors {
				row.Passed[flavor] = d.cells[cell{scenario.Name, v, string(flavor)}].passed
			}
			t.set(row)
		}
		return t.write(path)
	}
	if err := d.run(ctx); err != nil {
		return err
	}
	failed := []error{d.report()}
	if len(t.scenarios) > 0 {
		t.complete = complete
		return stderrors.Join(append(failed, t.write(path))...)
	}

	passed := map[string]map[testbed.Flavor]int{}
	var names []string // in the order in which they ran
	for _, flavor := range testbed.Flavors {
		progressf("tests of the Go client on the %s daemon", flavor)
		err := runClientTests(ctx, opt.Root, flavor, clientTests, t.runs, func(name string, pass bool) {
			if passed[name] == nil {
				passed[name] = map[testbed.Flavor]int{}
				names = append(names, name)
			}
			if pass {
				passed[name][flavor]++
			}
		})
		if err != nil {
			return err
		}
	}
	for _, name := range names {
		fmt.Printf("%s: upstream %d/%d, graphload %d/%d\n", name, passed[name][testbed.Upstream], t.runs, passed[name][testbed.Graphload], t.runs)
		t.set(tableRow{Scenario: name, Client: goClient, Runs: t.runs, Passed: passed[name]})
		if n := passed[name][testbed.Graphload]; n < t.runs {
			failed = append(failed, errors.Errorf("%s passed %d of %d", name, n, t.runs))
		}
	}
	err = runClientTests(ctx, opt.Root, testbed.Graphload, strangerTests, 1, func(name string, pass bool) {
		row := tableRow{Scenario: name, Client: beside, Runs: 1, Passed: map[testbed.Flavor]int{}}
		if pass {
			row.Passed[testbed.Upstream], row.Passed[testbed.Graphload] = 1, 1
		} else {
			failed = append(failed, errors.Errorf("%s: not the same on both daemons", name))
		}
		t.set(row)
	})
	if err != nil {
		return err
	}
	t.complete = true
	return stderrors.Join(append(failed, t.write(path))...)
}

// runClientTests runs the tests of the Go client on a daemon, and calls ended
// for each end of a test that has no others below. One that is skipped did not
// pass.
func runClientTests(ctx context.Context, dir string, flavor testbed.Flavor, tests string, runs int, ended func(name string, pass bool)) error {
	cmd := gomod.Command(ctx, dir, "test", "-buildvcs=false", "-json", "-timeout", "0", "-count", fmt.Sprint(runs), "-run", tests,
		"./integration", "-flavor", string(flavor))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return errors.WithStack(err)
	}
	if err := cmd.Start(); err != nil {
		return errors.WithStack(err)
	}
	var log strings.Builder
	above := map[string]bool{}
	count := 0
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var ev struct{ Action, Test, Output string }
		if json.Unmarshal(sc.Bytes(), &ev) != nil {
			continue
		}
		switch ev.Action {
		case "run":
			for i, r := range ev.Test {
				if r == '/' {
					above[ev.Test[:i]] = true
				}
			}
		case "output":
			log.WriteString(ev.Output)
		case "pass", "fail", "skip":
			if ev.Test == "" || above[ev.Test] {
				break
			}
			count++
			ended(ev.Test, ev.Action == "pass")
			progressf("%s daemon: %s %s", flavor, ev.Test, ev.Action)
		}
	}
	scanErr := sc.Err()
	// tests that fail are counted
	err = cmd.Wait()
	if scanErr != nil {
		return errors.WithStack(scanErr)
	}
	if count == 0 {
		return errors.Wrapf(err, "no test ran on the %s daemon: %s", flavor, log.String())
	}
	if err != nil && flavor == testbed.Graphload {
		fmt.Fprint(os.Stderr, log.String())
	}
	return nil
}

// set adds a row of today, or replaces it.
func (t *table) set(row tableRow) {
	row.Date = t.date.Format(time.DateOnly)
	for i, r := range t.rows {
		if r.Scenario == row.Scenario && r.Client == row.Client {
			t.rows[i] = row
			return
		}
	}
	t.rows = append(t.rows, row)
}

func jsonPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".json"
}

// read takes over a table that was made with the same programs and as many runs.
func (t *table) read(path string) error {
	dt, err := os.ReadFile(jsonPath(path))
	if err != nil {
		return errors.WithStack(err)
	}
	var f tableFile
	if err := json.Unmarshal(dt, &f); err != nil {
		return errors.Wrap(err, jsonPath(path))
	}
	for _, row := range f.Rows {
		if f.Upstream != t.version || row.Client != beside && row.Runs != t.runs {
			return errors.Errorf("%s has %d runs with BuildKit %s, not %d with %s: run all scenarios", jsonPath(path), row.Runs, f.Upstream, t.runs, t.version)
		}
	}
	if !slices.Equal(f.Programs, t.programs) {
		return errors.Errorf("%s was made with %q, not %q: run all scenarios", jsonPath(path), f.Programs, t.programs)
	}
	t.rows, t.complete = f.Rows, f.Complete
	return nil
}

// write writes the table as Markdown, and as JSON next to it.
func (t *table) write(path string) error {
	dt, err := json.MarshalIndent(tableFile{t.version, t.programs, t.complete, t.rows}, "", "  ")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := writeFile(jsonPath(path), append(dt, '\n')); err != nil {
		return err
	}
	return writeFile(path, []byte(t.markdown()))
}

func (t *table) markdown() string {
	var sb strings.Builder
	dates := map[string]struct{}{}
	for _, row := range t.rows {
		dates[row.Date] = struct{}{}
	}
	fmt.Fprintf(&sb, `# Compatibility

Unmodified clients on upstream's BuildKit %s and on this one, on %s: %d runs of
each, on one machine. buildx runs on both daemons at the same time, the Go client on
one after the other. A cell has the runs that passed, on upstream's daemon → on this
one. Written by %s, with the same figures as JSON next to it.

`, t.version, strings.Join(slices.Sorted(maps.Keys(dates)), ", "), t.runs, "`graphload integration`")
	for _, program := range t.programs {
		fmt.Fprintf(&sb, "- %s\n", program)
	}
	if !t.complete {
		sb.WriteString("\n**Not complete:** what is missing has not been run.\n")
	}

	byScenario := map[string]map[string]tableRow{}
	var bakes, tests, strangers, versions []string
	for _, row := range t.rows {
		if byScenario[row.Scenario] == nil {
			byScenario[row.Scenario] = map[string]tableRow{}
			switch row.Client {
			case goClient:
				tests = append(tests, row.Scenario)
			case beside:
				strangers = append(strangers, row.Scenario)
			default:
				bakes = append(bakes, row.Scenario)
			}
		}
		byScenario[row.Scenario][row.Client] = row
		if v, ok := strings.CutPrefix(row.Client, "buildx "); ok && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	slices.SortFunc(versions, semver.Compare)
	text := func(row tableRow) string {
		return fmt.Sprintf("%d → %d", row.Passed[testbed.Upstream], row.Passed[testbed.Graphload])
	}
	fmt.Fprintf(&sb, "\n## buildx\n\n| scenario | %s |\n|---|%s\n", strings.Join(versions, " | "), strings.Repeat("---|", len(versions)))
	for _, scenario := range bakes {
		fmt.Fprintf(&sb, "| %s |", scenario)
		for _, v := range versions {
			cell := "–"
			if row, ok := byScenario[scenario]["buildx "+v]; ok {
				cell = text(row)
			}
			fmt.Fprintf(&sb, " %s |", cell)
		}
		sb.WriteString("\n")
	}
	if len(tests) > 0 {
		sb.WriteString("\n## Go client\n\nTests of `integration/`, in which the test decides who evaluates first.\n\n| test | upstream → graphload |\n|---|---|\n")
		for _, scenario := range tests {
			fmt.Fprintf(&sb, "| %s | %s |\n", scenario, text(byScenario[scenario][goClient]))
		}
	}
	if len(strangers) > 0 {
		sb.WriteString("\n## Beside an unrelated build\n\nBuilds that run beside one that has solved the same steps and has nothing else to do\nwith them. What they see and return must be the same on both daemons.\n\n| test | the same |\n|---|---|\n")
		for _, scenario := range strangers {
			same := "no"
			if byScenario[scenario][beside].Passed[testbed.Graphload] > 0 {
				same = "yes"
			}
			fmt.Fprintf(&sb, "| %s | %s |\n", scenario, same)
		}
	}
	return sb.String()
}
