package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"
)

// Race is a data race that daemons with the race detector have reported.
type Race struct {
	Place  string `json:"place"` // the functions, of both sides
	Report string `json:"report"`
}

// Races are the data races of both daemons. Upstream's are only counted.
type Races struct {
	Upstream int    `json:"upstream"`
	New      []Race `json:"new"` // that upstream's daemon has not reported
}

// newRaces compares the reports in two folders.
func newRaces(upDir, glDir string) (Races, error) {
	up, err := readRaces(upDir)
	if err != nil {
		return Races{}, err
	}
	gl, err := readRaces(glDir)
	if err != nil {
		return Races{}, err
	}
	r := Races{Upstream: len(up)}
	for _, race := range gl {
		if !slices.ContainsFunc(up, func(u Race) bool { return u.Place == race.Place }) {
			r.New = append(r.New, race)
		}
	}
	return r, nil
}

// readRaces returns the races of all reports in a folder, each place once.
func readRaces(dir string) ([]Race, error) {
	files, err := filepath.Glob(filepath.Join(dir, "race.*"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	var races []Race
	for _, name := range files {
		dt, err := os.ReadFile(name)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		for report := range strings.SplitSeq(string(dt), "==================") {
			if !strings.Contains(report, "DATA RACE") {
				continue
			}
			place := racePlace(report)
			if !slices.ContainsFunc(races, func(r Race) bool { return r.Place == place }) {
				races = append(races, Race{Place: place, Report: strings.TrimSpace(report)})
			}
		}
	}
	return races, nil
}

// access is the start of one side of a race, with its innermost function.
var access = regexp.MustCompile(`(?m)^(?:Previous )?(?:[Rr]ead|[Ww]rite|[Aa]tomic read|[Aa]tomic write) at .*\n\s+(\S+)\(\)$`)

// racePlace names the functions on both sides, in one order.
func racePlace(report string) string {
	var funcs []string
	for _, m := range access.FindAllStringSubmatch(report, 2) {
		funcs = append(funcs, m[1])
	}
	slices.Sort(funcs)
	return strings.Join(funcs, " and ")
}
