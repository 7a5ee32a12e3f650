// Package embed makes a Go program that requires BuildKit use the assembled tree
// instead, through a replace directive in its go.mod. The tree has the go.mod of the
// release that it was assembled from, so the program is built with the same versions
// of everything else as before.
package embed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// Mark is the comment at the end of the lines that Embed adds to a go.mod. Undo removes
// only lines with the mark.
const Mark = "// graphload embed"

// Program is a Go program, as its go.mod describes it.
type Program struct {
	Dir      string
	Name     string // in messages, the path of its go.mod by default
	Vendored bool   // the source of its dependencies is in vendor

	path string
	data []byte // content of go.mod on disk
	file *modfile.File
	sums []byte // content of go.sum
}

// Change describes the lines that Embed added to go.mod, or found in it.
type Change struct {
	Tree     *assemble.Tree
	Replace  string           // the path of the tree
	Excludes []module.Version // copied from BuildKit's go.mod
	Used     []module.Version // not copied, because the program uses them
}

// Into assembles the tree of the release that the program requires, and makes the
// program use it. If that is impossible, Into writes nothing. It reports whether it
// wrote go.mod.
func Into(ctx context.Context, root string, p *Program) (*Change, bool, error) {
	served, err := assemble.Options{Root: root}.Releases()
	if err != nil {
		return nil, false, err
	}
	version, err := p.Release(served)
	if err != nil {
		return nil, false, err
	}
	t, err := assemble.Plan(ctx, assemble.Options{Root: root, Version: version, Copies: p.Vendored})
	if err != nil {
		return nil, false, err
	}
	c, err := p.Embed(t)
	if err != nil {
		return nil, false, err
	}
	if err := t.Write(); err != nil {
		return nil, false, err
	}
	written, err := p.Write()
	return c, written, err
}

// Embed makes the program in dir use the tree of the release that it requires, and
// writes to w what to run next.
func Embed(ctx context.Context, w io.Writer, root, dir string) (*assemble.Tree, error) {
	p, err := Open(dir)
	if err != nil {
		return nil, err
	}
	change, changed, err := Into(ctx, root, p)
	if err != nil {
		return nil, err
	}
	t := change.Tree
	kind := "a path relative to it, as it is inside this repository"
	if filepath.IsAbs(change.Replace) {
		kind = "an absolute path"
	}
	verb := "now replaces"
	if !changed {
		verb = "already replaces"
	}
	fmt.Fprintf(w, "%s %s BuildKit %s by %s, %s.\n", filepath.Join(p.Dir, "go.mod"), verb, t.Version, change.Replace, kind)
	for _, mod := range change.Excludes {
		fmt.Fprintf(w, "It excludes %s, as BuildKit does.\n", mod)
	}
	for _, mod := range change.Used {
		fmt.Fprintf(w, "It does not exclude %s, which BuildKit excludes: the program uses it.\n", mod)
	}
	fmt.Fprintf(w, "\nNext:\n  cd %s\n", p.Dir)
	if p.Vendored {
		fmt.Fprintln(w, "  go mod vendor")
	}
	fmt.Fprintln(w, "  go build ./...")
	return t, nil
}

// Revert removes the lines that Embed added to the go.mod in dir.
func Revert(w io.Writer, dir string) error {
	p, err := Open(dir)
	if err != nil {
		return err
	}
	removed, err := p.Undo()
	if err != nil {
		return err
	}
	if len(removed) == 0 {
		fmt.Fprintf(w, "%s has no line with %q: nothing to undo.\n", filepath.Join(p.Dir, "go.mod"), Mark)
		return nil
	}
	if _, err := p.Write(); err != nil {
		return err
	}
	for _, line := range removed {
		fmt.Fprintf(w, "removed: %s\n", line)
	}
	fmt.Fprintf(w, "\nNext, for upstream's BuildKit and its checksum:\n  cd %s\n  go mod tidy\n", p.Dir)
	if p.Vendored {
		fmt.Fprintln(w, "  go mod vendor")
	}
	return nil
}

// Open reads the go.mod in dir.
func Open(dir string) (*Program, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, errors.Errorf("%s is not a folder", dir)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	p := &Program{Dir: dir, path: filepath.Join(dir, "go.mod")}
	p.Name = p.path
	if p.data, err = os.ReadFile(p.path); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Errorf("no go.mod in %s: name the folder of the program's module", dir)
	} else if err != nil {
		return nil, errors.WithStack(err)
	}
	if p.file, err = modfile.Parse(p.path, p.data, nil); err != nil {
		return nil, errors.WithStack(err)
	}
	if p.sums, err = os.ReadFile(filepath.Join(dir, "go.sum")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.WithStack(err)
	}
	_, err = os.Stat(filepath.Join(dir, "vendor", "modules.txt"))
	p.Vendored = err == nil
	return p, nil
}

// Release returns the release of BuildKit that the program requires. It returns an error
// if the release is not supported.
func (p *Program) Release(supported []string) (string, error) {
	for _, r := range p.file.Require {
		if r.Mod.Path != upstream.Module {
			continue
		}
		if !slices.Contains(supported, r.Mod.Version) {
			return "", errors.Errorf("%s requires BuildKit %s, which is not supported. Supported: %s", p.Name, r.Mod.Version, strings.Join(supported, ", "))
		}
		return r.Mod.Version, nil
	}
	return "", errors.Errorf("%s does not require BuildKit (%s)", p.Name, upstream.Module)
}

// Embed replaces BuildKit with the tree and copies the exclude directives of BuildKit,
// which count only in the go.mod of the program. It leaves out excludes of versions that
// the program uses, for which the go command would select other versions. Only Write
// changes the file.
func (p *Program) Embed(t *assemble.Tree) (*Change, error) {
	c := &Change{Tree: t, Replace: p.treePath(t)}
	replaced := false
	for _, r := range p.file.Replace {
		if r.Old.Path != upstream.Module {
			continue
		}
		if !marked(r.Syntax) && (r.Old.Version != "" || r.New.Version != "" || p.abs(r.New.Path) != p.abs(c.Replace)) {
			return nil, errors.Errorf("%s already replaces BuildKit by %s: remove that line first", p.path, strings.TrimSpace(r.New.Path+" "+r.New.Version))
		}
		if !marked(r.Syntax) {
			c.Replace = r.New.Path
		}
		replaced = true
	}
	excludes, err := readExcludes(t)
	if err != nil {
		return nil, err
	}
	if err := p.file.AddReplace(upstream.Module, "", c.Replace, ""); err != nil {
		return nil, errors.WithStack(err)
	}
	if !replaced {
		for _, r := range p.file.Replace {
			if r.Old.Path == upstream.Module {
				mark(r.Syntax)
			}
		}
	}
	for _, e := range slices.Clone(p.file.Exclude) {
		if marked(e.Syntax) && !slices.Contains(excludes, e.Mod) { // of another release
			if err := p.file.DropExclude(e.Mod.Path, e.Mod.Version); err != nil {
				return nil, errors.WithStack(err)
			}
		}
	}
	for _, mod := range excludes {
		i := slices.IndexFunc(p.file.Exclude, func(e *modfile.Exclude) bool { return e.Mod == mod })
		switch {
		case i >= 0 && marked(p.file.Exclude[i].Syntax):
			c.Excludes = append(c.Excludes, mod)
		case i >= 0:
		case p.uses(mod):
			c.Used = append(c.Used, mod)
		default:
			if err := p.file.AddExclude(mod.Path, mod.Version); err != nil {
				return nil, errors.WithStack(err)
			}
			mark(p.file.Exclude[len(p.file.Exclude)-1].Syntax)
			c.Excludes = append(c.Excludes, mod)
		}
	}
	return c, nil
}

// Undo removes the directives that Embed added, and returns them. Only Write changes the
// file.
func (p *Program) Undo() (removed []string, _ error) {
	for _, r := range slices.Clone(p.file.Replace) {
		if !marked(r.Syntax) {
			continue
		}
		removed = append(removed, "replace "+r.Old.Path+" => "+r.New.Path)
		if err := p.file.DropReplace(r.Old.Path, r.Old.Version); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	for _, e := range slices.Clone(p.file.Exclude) {
		if !marked(e.Syntax) {
			continue
		}
		removed = append(removed, "exclude "+e.Mod.Path+" "+e.Mod.Version)
		if err := p.file.DropExclude(e.Mod.Path, e.Mod.Version); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	return removed, nil
}

// Write replaces go.mod in one step if it has changes, and reports whether it had.
func (p *Program) Write() (bool, error) {
	p.file.Cleanup()
	dt, err := p.file.Format()
	if err != nil {
		return false, errors.WithStack(err)
	}
	if bytes.Equal(dt, p.data) {
		return false, nil
	}
	path, err := filepath.EvalSymlinks(p.path)
	if err != nil {
		return false, errors.WithStack(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, errors.WithStack(err)
	}
	if err := files.Write(path, dt, info.Mode().Perm()); err != nil {
		return false, err
	}
	p.data = dt
	return true, nil
}

// treePath returns the path of the tree: a relative one for a program inside the
// repository, which moves with the tree, and an absolute one for others.
func (p *Program) treePath(t *assemble.Tree) string {
	if root, err := filepath.EvalSymlinks(t.Root); err == nil && strings.HasPrefix(p.Dir+"/", root+"/") {
		if rel, err := filepath.Rel(p.Dir, filepath.Join(root, strings.TrimPrefix(t.Dir, t.Root))); err == nil {
			rel = filepath.ToSlash(rel)
			if !strings.HasPrefix(rel, "../") {
				rel = "./" + rel
			}
			return rel
		}
	}
	return t.Dir
}

func (p *Program) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(p.Dir, path)
}

// uses reports whether the version is in the module graph of the program, as far as its
// go.mod and go.sum tell.
func (p *Program) uses(mod module.Version) bool {
	return slices.ContainsFunc(p.file.Require, func(r *modfile.Require) bool { return r.Mod == mod }) ||
		bytes.Contains(append([]byte("\n"), p.sums...), []byte("\n"+mod.Path+" "+mod.Version+"/go.mod "))
}

// readExcludes returns the module versions that the go.mod of the release excludes.
func readExcludes(t *assemble.Tree) (mods []module.Version, _ error) {
	path := filepath.Join(t.Upstream.Dir, "go.mod")
	dt, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	f, err := modfile.Parse(path, dt, nil)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, e := range f.Exclude {
		mods = append(mods, e.Mod)
	}
	return mods, nil
}

func mark(line *modfile.Line) {
	line.Suffix = append(line.Suffix, modfile.Comment{Token: Mark, Suffix: true})
}

func marked(line *modfile.Line) bool {
	return slices.ContainsFunc(line.Suffix, func(c modfile.Comment) bool { return c.Token == Mark })
}
