// Package seam changes declarations of Go packages in the few places where they must
// call code in other files.
//
// A seam names one declaration, one operation on it and the reason. Apply matches it
// on the syntax tree, so it does not depend on line numbers or layout, and it must match
// exactly once. Apply edits the original bytes, so the rest of a file stays as it is.
package seam

import (
	"bytes"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"go.yaml.in/yaml/v3"
	"golang.org/x/mod/semver"
)

// List is the content of a seam list: the seams in BuildKit and in other modules.
type List struct {
	Module `yaml:",inline"`
	// Modules are the other modules, by the folder with their added files.
	Modules map[string]*Module `yaml:"modules"`
}

// Module has the seams in one module.
type Module struct {
	Path string `yaml:"path"` // empty for BuildKit
	// Releases are the known versions of upstream with the checksums of their
	// modules.
	Releases map[string]string `yaml:"releases"`
	Seams    []*Seam           `yaml:"seams"`
}

// Seam is one change of one declaration. Exactly one operation is set.
type Seam struct {
	Name    string `yaml:"name"`
	Package string `yaml:"package"` // folder in the module
	In      string `yaml:"in"`      // Name, or Type.Method
	Why     string `yaml:"why"`

	AddField    string `yaml:"add-field"`
	Rename      string `yaml:"rename"`
	ReplaceCall string `yaml:"replace-call"`
	InsertAfter string `yaml:"insert-after"`
	Split       *Split `yaml:"split"`

	// With is the new code of replace-call and insert-after.
	With string `yaml:"with"`
}

// Split renames a function, changes its first result, and replaces the end of its body,
// starting with a given statement.
type Split struct {
	Rename string `yaml:"rename"`
	Result string `yaml:"result"`
	From   string `yaml:"from"`
	With   string `yaml:"with"`
}

// Served returns the versions of the releases, newest first.
func (m *Module) Served() []string {
	return slices.SortedFunc(maps.Keys(m.Releases), func(a, b string) int { return semver.Compare(b, a) })
}

// Load reads a seam list from a file, as Parse does.
func Load(path string) (*List, error) {
	dt, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	l, err := Parse(dt)
	return l, errors.Wrapf(err, "invalid seam list %s", path)
}

// Parse reads a seam list from YAML and checks that it is complete. Unknown keys are
// errors.
func Parse(dt []byte) (*List, error) {
	var l List
	dec := yaml.NewDecoder(bytes.NewReader(dt))
	dec.KnownFields(true)
	if err := dec.Decode(&l); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty: releases and seams are missing")
	} else if err != nil {
		return nil, errors.WithStack(err)
	}
	if l.Path != "" {
		return nil, errors.New("path is for modules other than BuildKit")
	}
	if err := l.validate(); err != nil {
		return nil, err
	}
	for name, m := range l.Modules {
		if !nameRegexp.MatchString(name) || m == nil || m.Path == "" {
			return nil, errors.Errorf("module %q needs a path, and the name of a folder", name)
		}
		if err := m.validate(); err != nil {
			return nil, errors.Wrapf(err, "module %s", name)
		}
	}
	return &l, nil
}

// Find returns the module with the given name, or BuildKit if name is empty.
func (l *List) Find(name string) (*Module, error) {
	if name == "" {
		return &l.Module, nil
	}
	m, ok := l.Modules[name]
	if !ok {
		return nil, errors.Errorf("no module %q, there are %s", name, strings.Join(slices.Sorted(maps.Keys(l.Modules)), ", "))
	}
	return m, nil
}

func (m *Module) validate() error {
	seen := map[string]bool{}
	for i, s := range m.Seams {
		if s == nil || s.Name == "" {
			return errors.Errorf("seam %d has no name", i+1)
		}
		if seen[s.Name] {
			return errors.Errorf("seam %s is listed twice", s.Name)
		}
		seen[s.Name] = true
		if err := s.validate(); err != nil {
			return errors.Wrapf(err, "seam %s", s.Name)
		}
	}
	return nil
}

// Operation returns the name of the operation, as in the list, and its argument.
func (s *Seam) Operation() (op, arg string) {
	for _, o := range s.operations() {
		if o[1] != "" {
			return o[0], o[1]
		}
	}
	return "", ""
}

func (s *Seam) operations() [][2]string {
	split := ""
	if s.Split != nil {
		split = s.Split.From
	}
	return [][2]string{
		{"add-field", s.AddField},
		{"rename", s.Rename},
		{"replace-call", s.ReplaceCall},
		{"insert-after", s.InsertAfter},
		{"split", split},
	}
}

var (
	declRegexp = regexp.MustCompile(`^\w+(\.\w+)?$`)
	nameRegexp = regexp.MustCompile(`^\w+$`)
)

func (s *Seam) validate() error {
	for key, v := range map[string]string{"package": s.Package, "in": s.In, "why": s.Why} {
		if strings.TrimSpace(v) == "" {
			return errors.Errorf("%s is missing", key)
		}
	}
	if !declRegexp.MatchString(s.In) {
		return errors.Errorf("in is %q: name a declaration as Name or Type.Method", s.In)
	}
	var ops []string
	for _, o := range s.operations() {
		if o[1] != "" {
			ops = append(ops, o[0])
		}
	}
	if len(ops) != 1 {
		return errors.Errorf("there must be exactly one operation, found %d %v", len(ops), ops)
	}
	switch op := ops[0]; op {
	case "replace-call", "insert-after":
		if s.With == "" {
			return errors.Errorf("%s needs the new code in with", op)
		}
	default:
		if s.With != "" {
			return errors.Errorf("%s takes no with", op)
		}
	}
	if s.Rename != "" && !nameRegexp.MatchString(s.Rename) {
		return errors.Errorf("rename is %q: give the new name only, without receiver or type", s.Rename)
	}
	if sp := s.Split; sp != nil && (!nameRegexp.MatchString(sp.Rename) || sp.Result == "" || sp.With == "") {
		return errors.New("split needs rename, result, from and with")
	}
	return nil
}
