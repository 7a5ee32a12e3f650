package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"
)

// Race is a data race that a daemon with the race detector has reported.
type Race struct {
	Place  string `json:"place"` // the functions, of both sides
	Report string `json:"report"`
}

// Races are the data races of both daemons. Upstream's are only counted.
type Races struct {
	Upstream int `json:"upstream"`
	// New are the races that upstream's daemon has not reported, and that have a
	// function of an added file in one of their stacks.
	New []Race `json:"new"`
	// Other are the races that upstream's daemon has not reported either, but that
	// have no function of an added file in their stacks. Upstream's scheduler has
	// races that show in one run and not in the next, so one run of its daemon
	// without them proves nothing, and the report does not say which test to run
	// again. The report shows them, but they do not fail the run.
	Other []Race `json:"other"`
}

// newRaces compares the reports in the folders of both daemons.
func newRaces(upDir, glDir string, added []string) (Races, error) {
	up, err := readRaces(upDir)
	if err != nil {
		return Races{}, err
	}
	gl, err := readRaces(glDir)
	if err != nil {
		return Races{}, err
	}
	r := Races{Upstream: len(up)}
	for place, races := range gl {
		if _, ok := up[place]; ok {
			continue
		}
		// the same place can be reached through the change and without
		if i := slices.IndexFunc(races, func(report string) bool { return involves(report, added) }); i >= 0 {
			r.New = append(r.New, Race{Place: place, Report: races[i]})
		} else {
			r.Other = append(r.Other, Race{Place: place, Report: races[0]})
		}
	}
	for _, races := range [][]Race{r.New, r.Other} {
		slices.SortFunc(races, func(a, b Race) int { return strings.Compare(a.Place, b.Place) })
	}
	return r, nil
}

// readRaces returns the reports in a folder by place.
func readRaces(dir string) (map[string][]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "race.*"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	races := map[string][]string{}
	for _, name := range files {
		dt, err := os.ReadFile(name)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		for report := range strings.SplitSeq(string(dt), "==================") {
			if strings.Contains(report, "DATA RACE") {
				at := place(report)
				races[at] = append(races[at], strings.TrimSpace(report))
			}
		}
	}
	return races, nil
}

// involves reports whether a function of an added file is in one of the stacks,
// including those that started the goroutines.
func involves(report string, added []string) bool {
	for _, s := range parseStacks(report) {
		for _, f := range s.frames {
			if slices.ContainsFunc(added, func(file string) bool { return strings.HasSuffix(f.file, "/"+file) }) {
				return true
			}
		}
	}
	return false
}

// place returns the functions on both sides, sorted.
func place(report string) string {
	var functions []string
	for _, s := range parseStacks(report) {
		if s.access {
			functions = append(functions, s.function())
		}
	}
	slices.Sort(functions)
	return strings.Join(functions, " and ")
}

// stack is one of the stacks of a report: of an access, or of the go statement that
// started one of the goroutines.
type stack struct {
	access bool
	frames []frame // the innermost one first
}

type frame struct {
	function, file string
}

var (
	accessLine   = regexp.MustCompile(`(?i)^(previous )?(atomic )?(read|write) at 0x`)
	functionLine = regexp.MustCompile(`^\s+(\S+)\(\)$`)
	fileLine     = regexp.MustCompile(`^\s+(\S.*):\d+( \+0x[0-9a-f]+)?$`)
)

func parseStacks(report string) []stack {
	var stacks []stack
	for line := range strings.Lines(report) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && line[0] != ' ' && strings.HasSuffix(line, ":") {
			stacks = append(stacks, stack{access: accessLine.MatchString(line)})
			continue
		}
		if len(stacks) == 0 {
			continue
		}
		s := &stacks[len(stacks)-1]
		if m := functionLine.FindStringSubmatch(line); m != nil {
			s.frames = append(s.frames, frame{function: m[1]})
		} else if m := fileLine.FindStringSubmatch(line); m != nil && len(s.frames) > 0 {
			s.frames[len(s.frames)-1].file = m[1]
		}
	}
	return stacks
}

// function returns the innermost function of BuildKit or of a library. Those of the
// runtime do not count, as they are the same for all accesses of maps.
func (s stack) function() string {
	for _, f := range s.frames {
		if !strings.HasPrefix(f.function, "runtime.") && !strings.HasPrefix(f.function, "internal/") && !strings.HasPrefix(f.function, "sync/atomic.") {
			return f.function
		}
	}
	return "?" // the detector does not always have the stack
}
