package conformance

import "slices"

// Verdict is what comes out of comparing one test.
type Verdict string

const (
	// Regression is a test that upstream's daemon passes and ours does not, also
	// when both try again.
	Regression Verdict = "regression"
	// Unsteady is a test that differed in the first run but not when it was tried
	// again, or that fails at times on both.
	Unsteady Verdict = "unsteady"
	// Improved is a test that ours passes and upstream's daemon does not.
	Improved Verdict = "improved"
)

// Difference is a test that ended differently.
type Difference struct {
	Package string  `json:"package"`
	Test    string  `json:"test"`
	Verdict Verdict `json:"verdict"`
	// how the first run and those after it ended
	Upstream  []Status `json:"upstream"`
	Graphload []Status `json:"graphload"`
	Output    string   `json:"output,omitempty"`
}

// candidates returns the tests that upstream passes and ours does not, or that
// upstream skips or does not have and ours fails. A test is not returned when one below it is: it
// failed with that.
func candidates(up, gl Results) []string {
	var out []string
	above := map[string]struct{}{}
	all := names(up, gl)
	for i := len(all) - 1; i >= 0; i-- { // what is below before what is above
		test := all[i]
		if _, ok := above[test]; ok || !worse(up.status(test), gl.status(test)) {
			continue
		}
		out = append(out, test)
		for j, r := range test {
			if r == '/' {
				above[test[:j]] = struct{}{}
			}
		}
	}
	return out
}

// worse tells if ours did not pass where upstream did, or failed where it has no
// such test or skips it.
func worse(up, gl Status) bool {
	return up == Pass && gl != Pass || (up == Missing || up == Skip) && (gl == Fail || gl == Unfinished)
}

// improved returns the tests without others below that only ours passes.
func improved(up, gl Results) []string {
	var out []string
	above := parents(up, gl)
	for _, test := range names(up, gl) {
		if _, ok := above[test]; !ok && up.status(test).failed() && up.status(test) != Missing && gl.status(test) == Pass {
			out = append(out, test)
		}
	}
	return out
}

// judge decides about a test that differed in the first run, which both lists
// start with. It is a regression unless, when tried again, ours passes as often
// as upstream, or both pass some times and fail others.
// A test that upstream never started is wanted to pass, and one that it skips to
// pass or be skipped.
func judge(up, gl []Status) Verdict {
	added := !slices.ContainsFunc(up, func(s Status) bool { return s != Missing })
	tries, wanted, passed := len(gl)-1, 0, 0
	for i := 1; i < len(gl); i++ {
		if gl[i] == Pass || gl[i] == Skip && up[i] == Skip {
			passed++
		}
		if up[i] == Pass || up[i] == Skip || added {
			wanted++
		}
	}
	if tries > 0 && (passed >= wanted || passed > 0 && wanted < tries) {
		return Unsteady
	}
	return Regression
}
