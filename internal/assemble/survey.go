package assemble

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
)

// Packages returns the packages of the tree that have seams or added files, as patterns
// for the go command. They include packages that only have tests for upstream's
// integration harness.
func (t *Tree) Packages() []string {
	pkgs := map[string]bool{}
	for name := range t.Changed {
		pkgs["./"+path.Dir(name)] = true
	}
	for _, name := range t.Added {
		pkgs["./"+path.Dir(name)] = true
	}
	return slices.Sorted(maps.Keys(pkgs))
}

// Fate says whether another release still has the place of a seam.
type Fate string

// The fates of a seam.
const (
	Held  Fate = "held"  // in the same line
	Moved Fate = "moved" // in another line or file
	Lost  Fate = "lost"  // not found, or more than once
)

// Finding is the fate of one seam.
type Finding struct {
	Seam     *seam.Seam
	Fate     Fate
	Old, New string // path:line, empty if not found
	Err      error  // why the seam is lost
	// Changes is a unified diff of upstream's changes to the declaration that the
	// seam names. A maintainer must review them even if the seam is found.
	Changes string
}

// Survey compares the places of all seams in two releases.
func Survey(from, to *upstream.Source, seams []*seam.Seam) ([]Finding, error) {
	old, err := locate(from, seams)
	if err != nil {
		return nil, err
	}
	current, err := locate(to, seams)
	if err != nil {
		return nil, err
	}
	out := make([]Finding, 0, len(seams))
	for _, s := range seams {
		before, after := old[s], current[s]
		f := Finding{Seam: s, Fate: Held, Old: position(before), New: position(after), Err: after.Err}
		switch {
		case f.New == "":
			f.Fate = Lost
		case f.New != f.Old:
			f.Fate = Moved
		}
		if before.Declaration != after.Declaration {
			f.Changes = udiff.Unified(s.In+" in "+from.Version, s.In+" in "+to.Version, before.Declaration+"\n", after.Declaration+"\n")
		}
		out = append(out, f)
	}
	return out, nil
}

func position(p seam.Place) string {
	if p.Match == nil {
		return ""
	}
	return p.Match.Position()
}

// locate looks for the seams one by one. The seams of a missing package are lost.
func locate(src *upstream.Source, seams []*seam.Seam) (map[*seam.Seam]seam.Place, error) {
	byPackage := map[string][]*seam.Seam{}
	for _, s := range seams {
		byPackage[s.Package] = append(byPackage[s.Package], s)
	}
	out := map[*seam.Seam]seam.Place{}
	for name, ss := range byPackage {
		files, err := readPackage(filepath.Join(src.Dir, filepath.FromSlash(name)))
		if err != nil {
			for _, s := range ss {
				out[s] = seam.Place{Seam: s, Err: err}
			}
			continue
		}
		places, err := seam.Locate(name, files, ss)
		if err != nil {
			return nil, err
		}
		for _, p := range places {
			out[p.Seam] = p
		}
	}
	return out, nil
}

// Summary returns the number of seams for each fate.
func Summary(findings []Finding) string {
	n := map[Fate]int{}
	for _, f := range findings {
		n[f.Fate]++
	}
	var parts []string
	for _, fate := range []Fate{Held, Moved, Lost} {
		parts = append(parts, fmt.Sprintf("%d %s", n[fate], fate))
	}
	return strings.Join(parts, ", ")
}
