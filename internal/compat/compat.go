// Package compat fills the table of clients and scenarios, on upstream's daemon and on
// this one.
package compat

import (
	"context"
	"encoding/json"
	stderrors "errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/demo"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gotest"
	"github.com/graphload/graphload/internal/progress"
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

// Names in the table for the clients of these tests.
const (
	goClient = "Go client"
	beside   = "beside an unrelated build"
)

// Table counts the runs that pass with each client, on upstream's daemon and on this
// one.
type Table struct {
	Version   string // of BuildKit
	Date      time.Time
	Runs      int
	Buildx    []string // versions
	Scenarios []string // only these, all of them and the Go client for none
	Markdown  string   // file
	JSON      string   // file, which is read if only some scenarios are run

	programs []string // versions of the other programs
	complete bool     // everything has run
	rows     []tableRow
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

// Fill runs everything and writes the table after each part, so that an interruption
// loses no finished part. Until the end, the table says that it is not complete. Fill
// returns an error if something failed on the daemon with the change.
func (t *Table) Fill(ctx context.Context, root string) error {
	scenarios := testbed.Scenarios
	var err error
	if err := testbed.FetchDocker(ctx); err != nil {
		return err
	}
	if t.programs, err = testbed.Programs(ctx); err != nil {
		return err
	}
	if len(t.Scenarios) > 0 {
		if scenarios, err = testbed.FindScenarios(t.Scenarios); err != nil {
			return err
		}
		if err := t.read(); err != nil {
			return err
		}
	}
	complete := t.complete // kept if only some scenarios run
	t.complete = false
	d := &demo.Table{Runs: t.Runs, Scenarios: scenarios, Buildx: t.Buildx, Columns: demo.Columns(testbed.Flavors), Together: true}
	d.Done = func(scenario testbed.Scenario) error {
		for _, v := range t.Buildx {
			if !scenario.RunsWith(v) {
				continue
			}
			row := tableRow{Scenario: scenario.About, Client: "buildx " + v, Runs: t.Runs, Passed: map[testbed.Flavor]int{}}
			for _, flavor := range testbed.Flavors {
				row.Passed[flavor] = d.Passed(scenario, v, string(flavor))
			}
			t.set(row)
		}
		return t.write()
	}
	if err := d.Run(ctx); err != nil {
		return err
	}
	failed := []error{d.Report()}
	if len(t.Scenarios) > 0 {
		t.complete = complete
		return stderrors.Join(append(failed, t.write())...)
	}

	passed := map[string]map[testbed.Flavor]int{}
	var names []string // in the order in which they ran
	for _, flavor := range testbed.Flavors {
		progress.Printf("tests of the Go client on the %s daemon", flavor)
		err := runClientTests(ctx, root, flavor, clientTests, t.Runs, func(name string, pass bool) {
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
		fmt.Printf("%s: upstream %d/%d, graphload %d/%d\n", name, passed[name][testbed.Upstream], t.Runs, passed[name][testbed.Graphload], t.Runs)
		t.set(tableRow{Scenario: name, Client: goClient, Runs: t.Runs, Passed: passed[name]})
		if n := passed[name][testbed.Graphload]; n < t.Runs {
			failed = append(failed, errors.Errorf("%s passed %d of %d", name, n, t.Runs))
		}
	}
	err = runClientTests(ctx, root, testbed.Graphload, strangerTests, 1, func(name string, pass bool) {
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
	return stderrors.Join(append(failed, t.write())...)
}

// runClientTests runs the tests of the Go client on a daemon, and calls ended each
// time a test without subtests ends. A test that is skipped counts as not passed.
func runClientTests(ctx context.Context, dir string, flavor testbed.Flavor, tests string, runs int, ended func(name string, pass bool)) error {
	args := []string{"-timeout", "0", "-count", fmt.Sprint(runs), "-run", tests, "./integration", "-flavor", string(flavor)}
	var log strings.Builder
	above := map[string]bool{}
	count := 0
	err := gotest.Events(ctx, dir, nil, args, func(ev gotest.Event) {
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
			progress.Printf("%s daemon: %s %s", flavor, ev.Test, ev.Action)
		}
	})
	if count == 0 {
		return errors.Wrapf(err, "no test ran on the %s daemon: %s", flavor, log.String())
	}
	if err != nil && flavor == testbed.Graphload { // the table counts tests that fail
		fmt.Fprint(os.Stderr, log.String())
	}
	return nil
}

// set adds or replaces a row, with today's date.
func (t *Table) set(row tableRow) {
	row.Date = t.Date.Format(time.DateOnly)
	for i, r := range t.rows {
		if r.Scenario == row.Scenario && r.Client == row.Client {
			t.rows[i] = row
			return
		}
	}
	t.rows = append(t.rows, row)
}

// read reads the earlier table, which must have the same programs and number of runs.
func (t *Table) read() error {
	dt, err := os.ReadFile(t.JSON)
	if err != nil {
		return errors.WithStack(err)
	}
	var f tableFile
	if err := json.Unmarshal(dt, &f); err != nil {
		return errors.Wrap(err, t.JSON)
	}
	for _, row := range f.Rows {
		if f.Upstream != t.Version || row.Client != beside && row.Runs != t.Runs {
			return errors.Errorf("%s has %d runs with BuildKit %s, not %d with %s: run all scenarios", t.JSON, row.Runs, f.Upstream, t.Runs, t.Version)
		}
	}
	if !slices.Equal(f.Programs, t.programs) {
		return errors.Errorf("%s was made with %q, not %q: run all scenarios", t.JSON, f.Programs, t.programs)
	}
	t.rows, t.complete = f.Rows, f.Complete
	return nil
}

// write writes the table as Markdown and as JSON.
func (t *Table) write() error {
	dt, err := json.MarshalIndent(tableFile{t.Version, t.programs, t.complete, t.rows}, "", "  ")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := files.Write(t.JSON, append(dt, '\n'), 0o644); err != nil {
		return err
	}
	engine, err := engineSection(t.Markdown)
	if err != nil {
		return err
	}
	return files.Write(t.Markdown, []byte(t.markdown()+engine), 0o644)
}

func (t *Table) markdown() string {
	var sb strings.Builder
	dates := map[string]struct{}{}
	for _, row := range t.rows {
		dates[row.Date] = struct{}{}
	}
	fmt.Fprintf(&sb, `# Compatibility

Unmodified clients on upstream's BuildKit %s and on this daemon, on %s: %d runs
each, on one machine. A cell has the number of runs that passed, on upstream's
daemon → on this one. buildx ran on both daemons at the same time, the Go client on one
after the other. %s writes this page.

`, t.Version, strings.Join(slices.Sorted(maps.Keys(dates)), ", "), t.Runs, "`graphload integration`")
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
	fmt.Fprintf(&sb, "\n## buildx\n\n| scenario | %s |\n|---|%s\n", strings.Join(versions, " | "), strings.Repeat("---|", len(versions)))
	for _, scenario := range bakes {
		fmt.Fprintf(&sb, "| %s |", scenario)
		for _, v := range versions {
			cell := "–"
			if row, ok := byScenario[scenario]["buildx "+v]; ok {
				cell = arrow(row)
			}
			fmt.Fprintf(&sb, " %s |", cell)
		}
		sb.WriteString("\n")
	}
	if len(tests) > 0 {
		sb.WriteString("\n## Go client\n\nTests of `integration/`. The test decides which target is evaluated first.\n\n| test | upstream → graphload |\n|---|---|\n")
		for _, scenario := range tests {
			fmt.Fprintf(&sb, "| %s | %s |\n", scenario, arrow(byScenario[scenario][goClient]))
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
