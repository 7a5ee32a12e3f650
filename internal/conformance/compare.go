package conformance

import "slices"

// Verdict is what comes out of comparing one test.
type Verdict string

const (
	// Regression is a test that upstream's daemon passes and ours does not, or that
	// ends with upstream's only, also when both try again.
	Regression Verdict = "regression"
	// Unsteady is a test that differed in the first run but not when it was tried
	// again, or that fails at times on both.
	Unsteady Verdict = "unsteady"
	// Improved is a test that ours passes and upstream's daemon does not.
	Improved Verdict = "improved"
	// Otherwise is a test that neither passes, which ended differently.
	Otherwise Verdict = "otherwise"
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

// candidates returns the tests that ended worse with ours. A test that fails is not
// returned when one below it does: it failed with that.
func candidates(up, gl Results) []string {
	var out []string
	above, failed := map[string]struct{}{}, map[string]struct{}{} // of what is returned, of what fails
	all := names(up, gl)
	for i := len(all) - 1; i >= 0; i-- { // what is below before what is above
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

// worse tells if ours did not pass where upstream did, did not end where upstream
// did, or failed where upstream has no such test, skips it or did not get to its
// end: how it ends there has to be found out.
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

// others returns the tests without others below that did not end worse with ours,
// but differently.
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

// judge decides about a test that differed in the first run, which both lists
// start with. It is a regression unless, when tried again, ours does as often as
// upstream what is wanted, or both do at times and at others do not.
func judge(up, gl []Status) Verdict {
	tries, wanted, did := tally(up, gl)
	if tries > 0 && (did >= wanted || did > 0 && wanted < tries) {
		return Unsteady
	}
	return Regression
}

// undecided tells if the tries are too few: upstream did at times what is wanted and
// at others did not, so that ours, which has not yet, may only have been unlucky.
func undecided(up, gl []Status) bool {
	tries, wanted, did := tally(up, gl)
	return did == 0 && 0 < wanted && wanted < tries
}

// tally counts the tries after the first run, and those in which upstream and ours
// did what is wanted. What upstream only fails is wanted to end, and everything else
// to pass. A test that upstream never started is wanted to pass always, and one that
// it skips to pass or be skipped.
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
