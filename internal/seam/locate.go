package seam

import "github.com/pkg/errors"

// Place is where a seam was looked for. Exactly one of Match and Err is set.
type Place struct {
	Seam  *Seam
	Match *Match
	Err   error
	// Declaration is the source of the declaration that the seam is in, if
	// there is exactly one.
	Declaration string
}

// Locate looks for each seam of a package on its own. Unlike Apply it goes on
// when one is not found.
func Locate(name string, files map[string][]byte, seams []*Seam) ([]Place, error) {
	var out []Place
	for _, s := range seams {
		p, err := parse(name, files)
		if err != nil {
			return nil, err
		}
		place := Place{Seam: s}
		if f, decl, err := p.find(s.In); err == nil {
			e := &editor{pkg: p, file: f, decl: decl, seam: s}
			place.Declaration = string(f.src[e.offset(decl.Pos()):e.offset(decl.End())])
		}
		if m, err := p.apply(s); err != nil {
			place.Err = errors.Wrapf(err, "package %s", name)
		} else {
			place.Match = &m
		}
		out = append(out, place)
	}
	return out, nil
}
