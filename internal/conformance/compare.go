package conformance

import "slices"

// Verdict is the result of comparing one test.
type Verdict string

const (
	// Regression is a test that passes, or at least ends, only with upstream's
	// daemon, even when retried with both.
	Regression Verdict = "regression"
	// Unsteady is a test that differed in the first run but not when retried, or
	// that is flaky with both daemons.
	Unsteady Verdict = "unsteady"
	// Improved is a test that passes with our daemon and not with upstream's.
	Improved Verdict = "improved"
	// Otherwise is a test that passes with neither daemon, but ended differently.
	Otherwise Verdict = "otherwise"
)

// Difference is a test with different results.
type Difference struct {
	Package string  `json:"package"`
	Test    string  `json:"test"`
	Verdict Verdict `json:"verdict"`
	// results of the first run and of the retries
	Upstream  []Status `json:"upstream"`
	Graphload []Status `json:"graphload"`
	Output    string   `json:"output,omitempty"`
}

// candidates returns the tests with worse results for our daemon. It leaves out a test
// that fails if one of its subtests fails, which is then the cause.
func candidates(up, gl Results) []string {
	var out []string
	above, failed := map[string]struct{}{}, map[string]struct{}{} // parents of results, parents of failures
	all := names(up, gl)
	for i := len(all) - 1; i >= 0; i-- { // subtests first
		test := all[i]
		if _, ok := above[test]; ok {
			continue
		}
		if gl.status(test) == Fail {
			if _, ok := failed[test]; ok {
				continue
			}
			addParents(failed, test)
		}
		if worse(up.status(test), gl.status(test)) && !up.failedBefore(test) {
			out = append(out, test)
			addParents(above, test)
		}
	}
	return out
}

// worse reports whether a test passed or ended only with upstream's daemon. It also
// returns true if the test failed with ours while upstream's run lacks it, skips it or
// did not finish it: a retry has to show how it ends there.
func worse(up, gl Status) bool {
	switch up {
	case Pass:
		return gl != Pass
	case Fail:
		return !gl.ended()
	case Skip:
		return gl == Fail || !gl.ended()
	case Missing, Unfinished:
		return gl == Fail || up == Missing && gl == Unfinished
	}
	return false
}

// others returns the tests without subtests whose results differ, but are not worse
// with our daemon.
func others(up, gl Results) map[string]Verdict {
	out := map[string]Verdict{}
	above := parents(up, gl)
	for _, test := range names(up, gl) {
		u, g := up.status(test), gl.status(test)
		if _, ok := above[test]; ok || u == g || u == Missing || u == Skip || worse(u, g) {
			continue
		}
		out[test] = Otherwise
		if g == Pass {
			out[test] = Improved
		}
	}
	return out
}

// judge returns the verdict on a test that differed in the first run, with which both
// lists start. The test is a regression unless ours has the wanted result in as many
// retries as upstream, or the test is flaky with both daemons.
func judge(up, gl []Status) Verdict {
	tries, wanted, did := tally(up, gl)
	if tries > 0 && (did >= wanted || did > 0 && wanted < tries) {
		return Unsteady
	}
	return Regression
}

// undecided reports whether there are too few retries: the test is flaky with
// upstream's daemon and never had the wanted result with ours, which may be bad luck.
func undecided(up, gl []Status) bool {
	tries, wanted, did := tally(up, gl)
	return did == 0 && 0 < wanted && wanted < tries
}

// tally counts the retries, and those with the wanted result: for upstream in wanted,
// for ours in did. A test that upstream only fails has to end; any other has to pass. A
// test that upstream never started has to pass always, and one that upstream skips has
// to pass or be skipped.
func tally(up, gl []Status) (tries, wanted, did int) {
	added := !slices.ContainsFunc(up, func(s Status) bool { return s != Missing })
	ends := slices.Contains(up, Fail) && !slices.Contains(up, Pass) && !slices.Contains(up, Skip)
	for i := 1; i < len(gl); i++ {
		if ends {
			if gl[i].ended() {
				did++
			}
			if up[i].ended() {
				wanted++
			}
			continue
		}
		if gl[i] == Pass || gl[i] == Skip && up[i] == Skip {
			did++
		}
		if up[i] == Pass || up[i] == Skip || added {
			wanted++
		}
	}
	return len(gl) - 1, wanted, did
}
