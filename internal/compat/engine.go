package compat

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gotest"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
)

const (
	// engineClientTests can run on either engine.
	engineClientTests = "^(TestEngineChildFirst|TestEngineCredentials|TestEngineRefusedLogins)$"
	// engineHeading starts the part of the table about the Docker engine. That part
	// comes last, and EngineTable alone writes it.
	engineHeading = "\n## Docker engine\n"
)

// EngineTable is the part of the table about the Docker engine.
type EngineTable struct {
	Engines  map[testbed.Flavor]string // their versions
	Date     time.Time
	Runs     int
	Markdown string // file of the whole table

	rows  []tableRow // of scenarios with buildx
	tests []tableRow // of the Go client, or of builds that are the same on both
}

// Fill runs the tests of the engine and writes the results.
func (t *EngineTable) Fill(ctx context.Context, root string) error {
	progress.Printf("tests of the Go client on upstream's engine")
	if err := t.run(ctx, root, testbed.Upstream, engineClientTests); err != nil && ctx.Err() != nil {
		return err
	}
	progress.Printf("tests of both engines")
	testErr := t.run(ctx, root, testbed.Graphload, "^TestEngine")
	if len(t.rows) == 0 {
		return errors.Wrap(testErr, "no scenario has run")
	}
	if err := t.write(); err != nil {
		return err
	}
	return testErr
}

// passes matches the line that a test prints about the runs of a scenario.
var passes = regexp.MustCompile(`scenario "([^"]+)" with buildx (\S+): (\d+) passes on upstream's engine, (\d+) on graphload's`)

// PassesFormat is the format of that line.
const PassesFormat = "scenario %q with buildx %s: %d passes on upstream's engine, %d on graphload's"

// run runs tests, and adds a row for each scenario and each test without subtests. It
// returns only the error of tests on the engine with the change.
func (t *EngineTable) run(ctx context.Context, root string, flavor testbed.Flavor, tests string) error {
	args := []string{"-timeout", "0", "-count", "1", "-run", tests, "./integration", "-engine", "-container-runs", fmt.Sprint(t.Runs), "-flavor", string(flavor)}
	above, compared := map[string]bool{}, map[string]bool{}
	return gotest.Events(ctx, root, nil, args, func(ev gotest.Event) {
		switch ev.Action {
		case "run":
			for i, r := range ev.Test {
				if r == '/' {
					above[ev.Test[:i]] = true
				}
			}
		case "output":
			if flavor == testbed.Graphload {
				fmt.Print(ev.Output)
			}
			if m := passes.FindStringSubmatch(ev.Output); m != nil {
				compared[ev.Test] = true
				t.rows = append(t.rows, tableRow{Scenario: m[1], Client: m[2], Runs: t.Runs, Passed: map[testbed.Flavor]int{
					testbed.Upstream: atoi(m[3]), testbed.Graphload: atoi(m[4]),
				}})
			}
		case "pass", "fail", "skip":
			if ev.Test == "" || above[ev.Test] || compared[ev.Test] {
				break
			}
			row := t.test(ev.Test)
			if ev.Action == "pass" {
				row.Passed[flavor]++
			}
		}
	})
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s) //nolint:errcheck // only digits
	return n
}

// test returns the row of a test.
func (t *EngineTable) test(name string) *tableRow {
	i := slices.IndexFunc(t.tests, func(row tableRow) bool { return row.Scenario == name })
	if i < 0 {
		i = len(t.tests)
		t.tests = append(t.tests, tableRow{Scenario: name, Runs: 1, Passed: map[testbed.Flavor]int{}})
	}
	return &t.tests[i]
}

// write replaces this part of the table.
func (t *EngineTable) write() error {
	dt, err := os.ReadFile(t.Markdown)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.WithStack(err)
	}
	rest, _, _ := bytes.Cut(dt, []byte(engineHeading))
	return files.Write(t.Markdown, append(slices.Clone(rest), t.markdown()...), 0o644)
}

// engineSection returns the part about the engine in an earlier table.
func engineSection(path string) (string, error) {
	dt, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", errors.WithStack(err)
	}
	_, section, ok := strings.Cut(string(dt), engineHeading)
	if !ok {
		return "", nil
	}
	return engineHeading + section, nil
}

func (t *EngineTable) markdown() string {
	var sb strings.Builder
	fmt.Fprintf(&sb, `%s
Unmodified clients on upstream's engine %s and on
%s, by turns, on %s: %d runs of each. Written by
%s. buildx has the docker driver, and is the plugin of the docker
command where that builds.

`, engineHeading, t.Engines[testbed.Upstream], t.Engines[testbed.Graphload], t.Date.Format(time.DateOnly), t.Runs, "`graphload engine --test`")
	for _, program := range testbed.EnginePrograms() {
		fmt.Fprintf(&sb, "- %s\n", program)
	}
	var scenarios, versions []string
	cells := map[[2]string]string{}
	for _, row := range t.rows {
		if !slices.Contains(scenarios, row.Scenario) {
			scenarios = append(scenarios, row.Scenario)
		}
		if !slices.Contains(versions, row.Client) {
			versions = append(versions, row.Client)
		}
		cells[[2]string{row.Scenario, row.Client}] = arrow(row)
	}
	fmt.Fprintf(&sb, "\n| scenario | %s |\n|---|%s\n", strings.Join(versions, " | "), strings.Repeat("---|", len(versions)))
	for _, scenario := range scenarios {
		fmt.Fprintf(&sb, "| %s |", scenario)
		for _, v := range versions {
			fmt.Fprintf(&sb, " %s |", cells[[2]string{scenario, v}])
		}
		sb.WriteString("\n")
	}
	client, both := &strings.Builder{}, &strings.Builder{}
	for _, row := range t.tests {
		if regexp.MustCompile(engineClientTests[:len(engineClientTests)-1]).MatchString(row.Scenario) {
			fmt.Fprintf(client, "| %s | %s |\n", row.Scenario, arrow(row))
			continue
		}
		result := "no"
		if row.Passed[testbed.Graphload] > 0 {
			result = "yes"
		}
		fmt.Fprintf(both, "| %s | %s |\n", row.Scenario, result)
	}
	fmt.Fprintf(&sb, "\nOne run of the tests of a Go client on each engine:\n\n| test | upstream → graphload |\n|---|---|\n%s", client)
	fmt.Fprintf(&sb, "\nTests that compare both engines, or are about one of them:\n\n| test | passes |\n|---|---|\n%s", both)
	return sb.String()
}

// arrow formats the numbers of passed runs.
func arrow(row tableRow) string {
	return fmt.Sprintf("%d → %d", row.Passed[testbed.Upstream], row.Passed[testbed.Graphload])
}
