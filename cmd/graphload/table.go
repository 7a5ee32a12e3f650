package main

import (
	"bufio"
	"context"
	"encoding/json"
	stderrors "errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
)

// clientTests are the tests of a Go client in which the test decides the order
// of evaluation, and which can run on either daemon.
const clientTests = "^(TestChildFirst|TestOrders|TestEvaluatedBy|TestIsolation|TestCredentials|TestOwnerGone)$"

// goClient is how the table calls their client.
const goClient = "Go client"

// table is what passes with which client, on upstream's daemon and on this one.
type table struct {
	version  string
	date     time.Time
	runs     int
	versions []string // of buildx
	rows     []tableRow
}

// tableRow is one scenario with one client.
type tableRow struct {
	Scenario string                 `json:"scenario"`
	Client   string                 `json:"client"`
	Runs     int                    `json:"runs"`
	Passed   map[testbed.Flavor]int `json:"passed"`
}

// fill runs everything and writes the table after each part, so that nothing is
// lost when it is interrupted. It fails when something failed on the daemon that
// must not fail.
func (t *table) fill(ctx context.Context, opt assemble.Options, path string) error {
	d := &demo{runs: t.runs, loops: testbed.Matrix, versions: t.versions, flavors: testbed.Flavors, cells: map[cell]*figures{}, together: true}
	d.done = func(loop testbed.Loop) error {
		for _, v := range t.versions {
			if !loop.RunsWith(v) {
				continue
			}
			row := tableRow{Scenario: loop.About, Client: "buildx " + v, Runs: t.runs, Passed: map[testbed.Flavor]int{}}
			for _, flavor := range d.flavors {
				row.Passed[flavor] = d.cells[cell{loop.Name, v, flavor}].passed
			}
			t.rows = append(t.rows, row)
		}
		return t.write(path)
	}
	if err := d.run(ctx); err != nil {
		return err
	}
	failed := []error{d.report()}

	passed := map[string]map[testbed.Flavor]int{}
	var names []string // in the order in which they ran
	for _, flavor := range testbed.Flavors {
		progressf("tests of the Go client on the %s daemon", flavor)
		err := runClientTests(ctx, opt.Root, flavor, t.runs, func(name string, pass bool) {
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
		t.rows = append(t.rows, tableRow{Scenario: name, Client: goClient, Runs: t.runs, Passed: passed[name]})
		if n := passed[name][testbed.Graphload]; n < t.runs {
			failed = append(failed, errors.Errorf("%s passed %d of %d", name, n, t.runs))
		}
	}
	return stderrors.Join(append(failed, t.write(path))...)
}

// runClientTests runs the tests of the Go client on a daemon, and calls ended
// for each end of a test that has no others below.
func runClientTests(ctx context.Context, dir string, flavor testbed.Flavor, runs int, ended func(name string, pass bool)) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-buildvcs=false", "-json", "-timeout", "0", "-count", fmt.Sprint(runs), "-run", clientTests,
		"./integration", "-flavor", string(flavor))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
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
		case "pass", "fail":
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

// write writes the table as Markdown, and as JSON next to it.
func (t *table) write(path string) error {
	dt, err := json.MarshalIndent(map[string]any{"date": t.date.Format(time.DateOnly), "upstream": t.version, "rows": t.rows}, "", "  ")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := writeFile(strings.TrimSuffix(path, filepath.Ext(path))+".json", append(dt, '\n')); err != nil {
		return err
	}
	return writeFile(path, []byte(t.markdown()))
}

func (t *table) markdown() string {
	var sb strings.Builder
	fmt.Fprintf(&sb, `# Compatibility

Unmodified clients on upstream's BuildKit %s and on this one, on %s: %d runs of
each, with both daemons at the same time on one machine. A cell has the runs
that passed, on upstream's daemon → on this one. Written by
%s, with the same figures as JSON next to it.
`, t.version, t.date.Format(time.DateOnly), t.runs, "`graphload integration`")

	byScenario := map[string]map[string]tableRow{}
	var bakes, tests []string
	for _, row := range t.rows {
		if byScenario[row.Scenario] == nil {
			byScenario[row.Scenario] = map[string]tableRow{}
			if row.Client == goClient {
				tests = append(tests, row.Scenario)
			} else {
				bakes = append(bakes, row.Scenario)
			}
		}
		byScenario[row.Scenario][row.Client] = row
	}
	text := func(row tableRow) string {
		return fmt.Sprintf("%d → %d", row.Passed[testbed.Upstream], row.Passed[testbed.Graphload])
	}
	fmt.Fprintf(&sb, "\n## buildx\n\n| scenario | %s |\n|---|%s\n", strings.Join(t.versions, " | "), strings.Repeat("---|", len(t.versions)))
	for _, scenario := range bakes {
		fmt.Fprintf(&sb, "| %s |", scenario)
		for _, v := range t.versions {
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
	return sb.String()
}
