// Package assemble puts a release of BuildKit, or of another module, the seams
// and the added files together into one source tree.
//
// The tree is upstream's module under its own import path, so every Go tool
// works in it as in upstream's. Upstream files are copies that differ only by
// the seams. Added files are links into the repository, so an edit in the tree
// is an edit of the repository.
package assemble

import (
	"bytes"
	"cmp"
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

// SeamList is the name of the seam list in the repository.
const SeamList = "seams.yaml"

// Options select the tree to assemble.
type Options struct {
	Root       string // the repository
	Module     string // another module of the seam list, BuildKit if it is empty
	Version    string // a release of the seam list
	Unmodified bool   // without seams and added files
	Copies     bool   // with copies of added files: go mod vendor leaves links out
}

// Default returns the options for the default release of a module: the BuildKit
// that go.mod requires, and the newest release of another module.
func Default(root, module string) (Options, error) {
	opt := Options{Root: root, Module: module}
	if module == "" {
		var err error
		opt.Version, err = upstream.DefaultVersion(root)
		return opt, err
	}
	versions, err := opt.Releases()
	if err == nil && len(versions) == 0 {
		err = errors.Errorf("module %s has no releases in %s", module, SeamList)
	}
	if err != nil {
		return opt, err
	}
	opt.Version = versions[0]
	return opt, nil
}

// Releases returns the releases of the module in the seam list, newest first.
func (o Options) Releases() ([]string, error) {
	m, err := o.seams()
	if err != nil {
		return nil, err
	}
	return m.Served(), nil
}

// Listed returns an error if the release is not in the seam list. The error says what to
// do about it.
func (o Options) Listed() error {
	m, err := o.seams()
	if err != nil {
		return err
	}
	return o.listed(m)
}

func (o Options) listed(m *seam.Module) error {
	if _, ok := m.Releases[o.Version]; ok {
		return nil
	}
	advice := ""
	switch {
	case o.Module != "":
		advice = ". To support it: add its checksum under releases in " + SeamList
	case semver.Canonical(o.Version) == o.Version:
		advice = ". To try it: graphload upgrade " + o.Version
	}
	supported := cmp.Or(strings.Join(m.Served(), ", "), "none")
	return errors.Errorf("%s is not supported. Supported: %s%s", o.Release(), supported, advice)
}

func (o Options) seams() (*seam.Module, error) {
	list, err := seam.Load(filepath.Join(o.Root, SeamList))
	if err != nil {
		return nil, err
	}
	return list.Find(o.Module)
}

// Path returns the path of the module.
func (o Options) Path() (string, error) {
	m, err := o.seams()
	if err != nil {
		return "", err
	}
	return cmp.Or(m.Path, upstream.Module), nil
}

// Name returns the name of the module, for messages.
func (o Options) Name() string {
	return cmp.Or(o.Module, "BuildKit")
}

// Release returns the module and its version, for messages.
func (o Options) Release() string {
	return o.Name() + " " + o.Version
}

// BuildDir returns the folder of the tree in the repository, without the suffix for
// Unmodified.
func (o Options) BuildDir() string {
	return filepath.Join(o.Root, "build", strings.TrimPrefix(o.Module+"-"+o.Version, "-"))
}

// Source returns the path in the repository of an added file, given by its path in the
// tree.
func (o Options) Source(rel string) string {
	return filepath.Join(o.Root, o.Module, filepath.FromSlash(rel))
}

// Tree is the plan of a tree. Only Write writes it.
type Tree struct {
	Options
	Dir      string // folder that Write writes to
	Upstream *upstream.Source
	Matches  []seam.Match
	Changed  map[string][]byte // upstream files with seams, by slash-separated path
	Added    []string          // added files, by slash-separated path in the tree
}

// Plan fetches the release and finds the places of all seams in it.
func Plan(ctx context.Context, opt Options) (*Tree, error) {
	m, err := opt.seams()
	if err != nil {
		return nil, err
	}
	if err := opt.listed(m); err != nil {
		return nil, err
	}
	src, err := upstream.Fetch(ctx, cmp.Or(m.Path, upstream.Module), opt.Version, m.Releases[opt.Version])
	if err != nil {
		return nil, err
	}
	return plan(opt, src, m.Seams)
}

// PlanSource is Plan for a source that is not a release of the seam list.
func PlanSource(opt Options, src *upstream.Source) (*Tree, error) {
	m, err := opt.seams()
	if err != nil {
		return nil, err
	}
	return plan(opt, src, m.Seams)
}

func plan(opt Options, src *upstream.Source, seams []*seam.Seam) (*Tree, error) {
	t := &Tree{Options: opt, Upstream: src, Changed: map[string][]byte{}}
	t.Dir = opt.BuildDir()
	if opt.Unmodified {
		t.Dir += "-unmodified"
		return t, nil
	}
	if opt.Copies {
		t.Dir += "-copies"
	}
	if err := t.findAdded(); err != nil {
		return nil, err
	}

	var err error
	if t.Changed, t.Matches, err = t.Apply(seams); err != nil {
		return nil, err
	}
	return t, nil
}

// Apply returns the upstream files that some of the seams change, with these seams,
// by slash-separated path, and the places of the seams.
func (t *Tree) Apply(seams []*seam.Seam) (map[string][]byte, []seam.Match, error) {
	byPackage := map[string][]*seam.Seam{}
	for _, s := range seams {
		byPackage[s.Package] = append(byPackage[s.Package], s)
	}
	out := map[string][]byte{}
	places := map[*seam.Seam]seam.Match{}
	for _, name := range slices.Sorted(maps.Keys(byPackage)) {
		sources, err := readPackage(filepath.Join(t.Upstream.Dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			s := byPackage[name][0]
			return nil, nil, errors.Errorf("%s has no package %s: seam %s needs its declaration %s", t.Release(), name, s.Name, s.In)
		}
		if err != nil {
			return nil, nil, err
		}
		changed, ms, err := seam.Apply(name, sources, byPackage[name])
		if err != nil {
			return nil, nil, errors.Wrap(err, t.Release())
		}
		for fn, dt := range changed {
			out[name+"/"+fn] = dt
		}
		for _, m := range ms {
			places[m.Seam] = m
		}
	}
	var matches []seam.Match
	for _, s := range seams {
		matches = append(matches, places[s])
	}
	return out, matches, nil
}

func readPackage(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	sources := map[string][]byte{}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".go") {
			if sources[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
				return nil, errors.WithStack(err)
			}
		}
	}
	return sources, nil
}

// AddedFiles returns the files that join packages of the module, by slash-separated path
// in the tree.
func (o Options) AddedFiles() (added []string, _ error) {
	dirs := []string{"."}
	if o.Module == "" {
		var err error
		if dirs, err = addedDirs(o.Root); err != nil {
			return nil, err
		}
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(o.Source(dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(o.Source("."), path)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			if !d.Type().IsRegular() || !strings.HasSuffix(rel, ".go") {
				return errors.Errorf("%s is not a Go file: only Go files can join a package of %s", rel, o.Name())
			}
			added = append(added, rel)
			return nil
		})
		if err != nil {
			return nil, errors.WithStack(err)
		}
	}
	return added, nil
}

// findAdded sets the added files. It returns an error if upstream also has one of them.
func (t *Tree) findAdded() (err error) {
	if t.Added, err = t.AddedFiles(); err != nil {
		return err
	}
	for _, rel := range t.Added {
		if _, err := os.Lstat(filepath.Join(t.Upstream.Dir, rel)); err == nil {
			return errors.Errorf("added file %s exists in %s: rename it", rel, t.Release())
		}
	}
	return nil
}

// Write brings the tree on disk up to date. It does not touch files that are already up
// to date, replaces each other file in one step, and removes files that do not belong to
// the tree last.
func (t *Tree) Write() error {
	wanted := map[string]bool{}
	err := filepath.WalkDir(t.Upstream.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(t.Upstream.Dir, path)
		if err != nil {
			return err
		}
		wanted[rel] = true
		dt, ok := t.Changed[filepath.ToSlash(rel)]
		if !ok {
			if dt, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(t.Dir, rel), dt, info.Mode().Perm()|0o200)
	})
	if err != nil {
		return errors.WithStack(err)
	}
	for _, rel := range t.Added {
		wanted[filepath.FromSlash(rel)] = true
		if err := t.addFile(filepath.FromSlash(rel)); err != nil {
			return err
		}
	}
	return t.removeStale(wanted)
}

func (t *Tree) addFile(rel string) error {
	path, target := filepath.Join(t.Dir, rel), t.Source(rel)
	if !t.Copies {
		return linkFile(path, target)
	}
	dt, err := os.ReadFile(target)
	if err != nil {
		return errors.WithStack(err)
	}
	return writeFile(path, dt, 0o644)
}

func writeFile(path string, dt []byte, mode fs.FileMode) error {
	if info, err := os.Lstat(path); err == nil && info.Mode() == mode {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, dt) {
			return nil
		}
	}
	return files.Write(path, dt, mode)
}

func linkFile(path, target string) error {
	rel, err := filepath.Rel(filepath.Dir(path), target)
	if err != nil {
		return errors.WithStack(err)
	}
	if old, err := os.Readlink(path); err == nil && old == rel {
		return nil
	}
	return files.Replace(path, func(tmp string) error { return os.Symlink(rel, tmp) })
}

func (t *Tree) removeStale(wanted map[string]bool) error {
	return errors.WithStack(filepath.WalkDir(t.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(t.Dir, path)
		if err != nil || wanted[rel] {
			return err
		}
		return os.Remove(path)
	}))
}

// FileDiff is the difference of one file between upstream and the tree.
type FileDiff struct {
	Path    string // slash-separated
	New     bool
	Unified string // hunks with their header, as git writes them
	Plus    int    // lines that only the tree has
	Minus   int    // lines that only upstream has
}

// Diff returns the differences between upstream and the tree, upstream files
// first, both ordered by path.
func (t *Tree) Diff() ([]FileDiff, error) {
	var out []FileDiff
	for _, rel := range slices.Sorted(maps.Keys(t.Changed)) {
		old, err := os.ReadFile(filepath.Join(t.Upstream.Dir, filepath.FromSlash(rel)))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		fd, err := diff(rel, old, t.Changed[rel], false)
		if err != nil {
			return nil, err
		}
		out = append(out, fd)
	}
	for _, rel := range slices.Sorted(slices.Values(t.Added)) {
		dt, err := os.ReadFile(t.Source(rel))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		fd, err := diff(rel, nil, dt, true)
		if err != nil {
			return nil, err
		}
		out = append(out, fd)
	}
	return out, nil
}

// Patch returns the differences between upstream and the tree as one file for
// git apply.
func (t *Tree) Patch() ([]byte, error) {
	diffs, err := t.Diff()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	for _, d := range diffs {
		buf.WriteString(d.Unified)
	}
	return buf.Bytes(), nil
}

func diff(rel string, old, dt []byte, added bool) (FileDiff, error) {
	fd := FileDiff{Path: rel, New: added}
	from := "a/" + rel
	header := "diff --git a/" + rel + " b/" + rel + "\n"
	if added {
		from = "/dev/null"
		header += "new file mode 100644\n"
	}
	hunks, err := udiff.ToUnified(from, "b/"+rel, string(old), udiff.Lines(string(old), string(dt)), udiff.DefaultContextLines)
	if err != nil {
		return fd, errors.Wrapf(err, "failed to compare %s", rel)
	}
	fd.Unified = header + hunks
	for line := range strings.Lines(hunks) {
		switch {
		case strings.HasPrefix(line, "+++ "), strings.HasPrefix(line, "--- "):
		case line[0] == '+':
			fd.Plus++
		case line[0] == '-':
			fd.Minus++
		}
	}
	return fd, nil
}
