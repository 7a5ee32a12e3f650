package conformance

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"
)

// Status is how a test ended.
type Status string

// How a test can end.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
	// Unfinished is a test that started and did not end: its process did.
	Unfinished Status = "unfinished"
	// Missing is a test that was not started.
	Missing Status = "missing"
)

// ended tells if a test came to its end.
func (s Status) ended() bool {
	return s != Unfinished && s != Missing
}

// Results are the tests of one package, in one run, by their name.
type Results map[string]*Result

// Result is one test.
type Result struct {
	Status  Status
	Seconds float64
	Output  string // of a test that did not pass
}

// event is a line of go tool test2json.
type event struct {
	Action  string
	Test    string
	Elapsed float64
	Output  string
}

// slice is what the names of the harness have when it runs a part of its tests.
var slice = regexp.MustCompile(`/slice=\d+-\d+/`)

// parse reads the events of a test process into the results. What is not an
// event, as the end of a process that crashed, is output of the package, which
// is returned.
func (rs Results) parse(r io.Reader, ended func(Status)) (string, error) {
	outputs := map[string]*strings.Builder{}
	output := func(test, s string) {
		if outputs[test] == nil {
			outputs[test] = &strings.Builder{}
		}
		outputs[test].WriteString(s)
	}
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		if len(line) > 0 {
			var ev event
			if json.Unmarshal(line, &ev) != nil {
				output("", string(line))
			} else {
				test := slice.ReplaceAllString(ev.Test, "/")
				switch ev.Action {
				case "output":
					output(test, ev.Output)
				case "run":
					rs[test] = &Result{Status: Unfinished}
				case "pass", "fail", "skip":
					if test == "" {
						break
					}
					rs[test] = &Result{Status: Status(ev.Action), Seconds: ev.Elapsed}
					if b := outputs[test]; b != nil && ev.Action == "fail" {
						rs[test].Output = b.String()
					}
					delete(outputs, test)
					if ended != nil {
						ended(Status(ev.Action))
					}
				}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", errors.WithStack(err)
		}
	}
	for test, r := range rs {
		if b := outputs[test]; b != nil && r.Status == Unfinished {
			r.Output = b.String()
		}
	}
	if b := outputs[""]; b != nil {
		return b.String(), nil
	}
	return "", nil
}

// status returns how a test ended.
func (rs Results) status(test string) Status {
	if r, ok := rs[test]; ok {
		return r.Status
	}
	return Missing
}

// failedBefore tells if a test is missing because the one above it failed by itself
// before it came to it.
func (rs Results) failedBefore(test string) bool {
	i := strings.LastIndexByte(test, '/')
	if i < 0 || rs.status(test) != Missing || rs.status(test[:i]) != Fail {
		return false
	}
	for name, r := range rs {
		if r.Status == Fail && strings.HasPrefix(name, test[:i+1]) {
			return false
		}
	}
	return true
}

// merge adds the results of another process of the same package. Of a test that
// both have, as one with others below, the worse counts.
func (rs Results) merge(other Results) {
	severity := []Status{Skip, Pass, Fail, Unfinished}
	for test, r := range other {
		if old, ok := rs[test]; !ok || slices.Index(severity, r.Status) > slices.Index(severity, old.Status) {
			rs[test] = r
		}
	}
}

// harness returns the counts of the tests that the harness ran, and of these
// functions that failed before it ran any.
func (rs Results) harness(functions []string) Counts {
	var c Counts
	above := parents(rs)
	for test, r := range rs {
		if _, ok := above[test]; ok {
			continue
		}
		function, _, _ := strings.Cut(test, "/")
		if strings.Contains(test, "/worker=") || (r.Status == Fail || r.Status == Unfinished) && slices.Contains(functions, function) {
			c.add(r.Status)
		}
	}
	return c
}

// parents returns the tests that have others below.
func parents(all ...Results) map[string]struct{} {
	m := map[string]struct{}{}
	for _, rs := range all {
		for test := range rs {
			addParents(m, test)
		}
	}
	return m
}

// addParents adds the tests that a test is below.
func addParents(m map[string]struct{}, test string) {
	for i, r := range test {
		if r == '/' {
			m[test[:i]] = struct{}{}
		}
	}
}

// Counts are numbers of tests that have no others below.
type Counts struct {
	Pass int `json:"pass"`
	Fail int `json:"fail"`
	Skip int `json:"skip"`
}

func (c *Counts) add(s Status) {
	switch s {
	case Pass:
		c.Pass++
	case Skip:
		c.Skip++
	case Fail, Unfinished:
		c.Fail++
	case Missing:
	}
}

func (c *Counts) sum(o Counts) {
	c.Pass += o.Pass
	c.Fail += o.Fail
	c.Skip += o.Skip
}

func (rs Results) counts() Counts {
	var c Counts
	above := parents(rs)
	for test, r := range rs {
		if _, ok := above[test]; !ok {
			c.add(r.Status)
		}
	}
	return c
}

// names returns the tests of all results in order.
func names(all ...Results) []string {
	m := map[string]struct{}{}
	for _, rs := range all {
		for test := range rs {
			m[test] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(m))
}

// again returns the arguments of -test.run that run these tests in the order and
// with the neighbours of the first run: a test function, or with the harness one
// of its tests, as a whole. Several tests can have the same.
func again(tests []string) []string {
	patterns := make([]string, len(tests))
	for i, test := range tests {
		parts := strings.Split(test, "/")
		n := slices.IndexFunc(parts, func(p string) bool { return strings.HasPrefix(p, "worker=") })
		parts = parts[:max(n, 0)+1]
		for j, p := range parts {
			parts[j] = "^" + regexp.QuoteMeta(p) + "$"
		}
		patterns[i] = strings.Join(parts, "/")
	}
	return patterns
}
