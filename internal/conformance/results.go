package conformance

import (
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/gotest"
)

// Status is how a test ended.
type Status string

// How a test can end.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
	// Unfinished is a test that started and did not end before its process did.
	Unfinished Status = "unfinished"
	// Missing is a test that did not start.
	Missing Status = "missing"
)

// ended reports whether a test ended.
func (s Status) ended() bool {
	return s != Unfinished && s != Missing
}

// Results are the tests of one package in one run, by name.
type Results map[string]*Result

// Result is one test.
type Result struct {
	Status  Status
	Seconds float64
	Output  string // of a test that did not pass
}

// parse reads the events of a test process into the results. It returns the output of
// the package, which includes lines that are not events, like those of a crash.
func (rs Results) parse(r io.Reader, ended func(Status)) (string, error) {
	outputs := map[string]*strings.Builder{}
	err := gotest.Read(r, func(ev gotest.Event) {
		switch ev.Action {
		case "output":
			if outputs[ev.Test] == nil {
				outputs[ev.Test] = &strings.Builder{}
			}
			outputs[ev.Test].WriteString(ev.Output)
		case "run":
			rs[ev.Test] = &Result{Status: Unfinished}
		case "pass", "fail", "skip":
			if ev.Test == "" {
				break
			}
			result := &Result{Status: Status(ev.Action), Seconds: ev.Elapsed}
			if b := outputs[ev.Test]; b != nil && ev.Action == "fail" {
				result.Output = b.String()
			}
			rs[ev.Test] = result
			delete(outputs, ev.Test)
			if ended != nil {
				ended(result.Status)
			}
		}
	})
	if err != nil {
		return "", err
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

// failedBefore reports whether a test is missing because its parent test failed
// before it started the test.
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

// harness counts the tests that the harness ran, and the given functions that failed
// before it ran any.
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

// parents returns the tests that have subtests.
func parents(all ...Results) map[string]struct{} {
	m := map[string]struct{}{}
	for _, rs := range all {
		for test := range rs {
			addParents(m, test)
		}
	}
	return m
}

// addParents adds the tests above a test.
func addParents(m map[string]struct{}, test string) {
	for i, r := range test {
		if r == '/' {
			m[test[:i]] = struct{}{}
		}
	}
}

// Counts are numbers of tests without subtests.
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

// names returns the names of the tests in all results, sorted.
func names(all ...Results) []string {
	m := map[string]struct{}{}
	for _, rs := range all {
		for test := range rs {
			m[test] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(m))
}

// again returns a pattern for -test.run for each test, so that the test runs in the
// same order and with the same neighbours as in the first run. A pattern selects a
// whole test function, or a whole test of the harness, so several tests can share one.
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
