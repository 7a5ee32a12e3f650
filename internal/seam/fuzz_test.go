package seam

import "testing"

// FuzzParse parses arbitrary bytes as a seam list. The result must be an error, or a
// list whose seams Apply can apply to any source without a panic.
func FuzzParse(f *testing.F) {
	for _, in := range []string{
		"releases:\n  v1.0.0: h1:abc=\nseams:\n- {name: a, package: p, in: T, why: w, add-field: f int}\n",
		"seams:\n- {name: a, package: p, in: F, why: w, rename: g}\n",
		"seams:\n- {name: a, package: p, in: F, why: w, replace-call: f, with: g}\n",
		"seams:\n- {name: a, package: p, in: F, why: w, insert-after: f(), with: g()}\n",
		"seams:\n- {name: a, package: p, in: F, why: w, split: {from: f(), rename: b, result: int, with: return 1}}\n",
		"modules:\n  other:\n    path: example.com/other\n    releases: {v1.0.0: h1:abc=}\n    seams:\n    - {name: a, package: p, in: F, why: w, rename: g}\n",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, dt []byte) {
		list, err := Parse(dt)
		if err != nil {
			return
		}
		seams := list.Seams
		for _, m := range list.Modules {
			seams = append(seams, m.Seams...)
		}
		for _, s := range seams {
			if s.Name == "" || s.Package == "" || s.In == "" || s.Why == "" {
				t.Errorf("an incomplete seam was accepted: %+v", s)
			}
			Apply(s.Package, map[string][]byte{"p.go": []byte(gofmtSource)}, []*Seam{s})
		}
	})
}
