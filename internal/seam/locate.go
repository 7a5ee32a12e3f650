package seam

import "github.com/pkg/errors"

// Place is the result of looking for a seam. Exactly one of Match and Err is set.
type Place struct {
	Seam  *Seam
	Match *Match
	Err   error
	// Declaration is the source of the declaration that the seam names, if there
	// is exactly one.
	Declaration string
}

// Locate looks for each seam of a package separately. Unlike Apply, it continues if it
// does not find one.
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
