// Package series writes the change as a series of commits for upstream: one mail
// for each, as git format-patch writes them, for git am.
package series

import (
	"bytes"
	"context"
	"fmt"
	"go/format"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/seam"
	"github.com/pkg/errors"
)

// Person is the author of the series, who signs it off.
type Person struct {
	Name, Email string
}

// Options select the author of a series and its commits.
type Options struct {
	Author Person
	Date   time.Time
	// Upstream leaves out the commits that are only for releases.
	Upstream bool
}

// Patch is one mail.
type Patch struct {
	Commit
	Name     string   // file name, as git format-patch chooses it
	Packages []string // with changes, as patterns for the go command
	Mail     []byte
}

// New returns the series for a tree. It commits the changes of the tree in a repository
// that has only the changed files.
func New(ctx context.Context, t *assemble.Tree, opt Options) ([]Patch, error) {
	p, err := split(t, Modules[t.Module])
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "graphload-series-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.RemoveAll(dir)
	return p.commit(ctx, dir, opt)
}

// parts are the seams and added files of a tree by the commits that they belong to.
type parts struct {
	tree    *assemble.Tree
	commits []Commit
	seams   map[*seam.Seam]int
	added   map[string]int
}

func split(t *assemble.Tree, commits []Commit) (*parts, error) {
	p := &parts{tree: t, commits: commits, seams: map[*seam.Seam]int{}, added: map[string]int{}}
	unused := map[string]string{} // maps paths and seams to the title of their commit
	for _, c := range commits {
		for _, name := range slices.Concat(c.Paths, c.Seams) {
			unused[name] = c.Title
		}
	}
	for _, m := range t.Matches {
		i := slices.IndexFunc(commits, func(c Commit) bool { return slices.Contains(c.Seams, m.Seam.Name) })
		name := m.Seam.Name
		if i < 0 {
			i, name = owner(commits, m.Seam.Package)
		}
		if i < 0 {
			return nil, errors.Errorf("seam %s belongs to no commit of the series: add it, or its folder %s, to one in internal/series", m.Seam.Name, m.Seam.Package)
		}
		p.seams[m.Seam] = i
		delete(unused, name)
	}
	for _, rel := range t.Added {
		i, name := owner(commits, rel)
		if i < 0 {
			return nil, errors.Errorf("%s belongs to no commit of the series: add its folder to one in internal/series", rel)
		}
		p.added[rel] = i
		delete(unused, name)
	}
	for _, name := range slices.Sorted(maps.Keys(unused)) {
		return nil, errors.Errorf("commit %q of the series has nothing of %s: take that out of it in internal/series", unused[name], name)
	}
	return p, nil
}

// owner returns the commit that names the path, or the closest folder above it, and
// that name.
func owner(commits []Commit, name string) (int, string) {
	for ; name != "."; name = path.Dir(name) {
		for i, c := range commits {
			if slices.Contains(c.Paths, name) {
				return i, name
			}
		}
	}
	return -1, ""
}

// files returns the files that a commit changes or adds, with their content after the
// commit, by slash-separated path.
func (p *parts) files(commit int) (map[string][]byte, error) {
	var seams []*seam.Seam
	for _, m := range p.tree.Matches {
		changed := slices.ContainsFunc(p.tree.Matches, func(other seam.Match) bool {
			return other.Seam.Package == m.Seam.Package && p.seams[other.Seam] == commit
		})
		if changed && p.seams[m.Seam] <= commit {
			seams = append(seams, m.Seam)
		}
	}
	out, _, err := p.tree.Apply(seams)
	if err != nil {
		return nil, err
	}
	for rel, i := range p.added {
		hooked := slices.ContainsFunc(p.commits[commit].Hooks, func(h Hook) bool { return h.File == rel })
		if i != commit && !hooked {
			continue
		}
		dt, err := os.ReadFile(p.tree.Source(rel))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if out[rel], err = before(rel, dt, p.commits[commit+1:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// upstream returns upstream's content of the files that have seams.
func (p *parts) upstream() (map[string][]byte, error) {
	out := map[string][]byte{}
	for rel := range p.tree.Changed {
		dt, err := os.ReadFile(filepath.Join(p.tree.Upstream.Dir, filepath.FromSlash(rel)))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		out[rel] = dt
	}
	return out, nil
}

// before returns the content of an added file without the hooks of the commits.
func before(rel string, dt []byte, commits []Commit) ([]byte, error) {
	hooked := false
	for _, c := range commits {
		for _, h := range c.Hooks {
			if h.File != rel {
				continue
			}
			code := []byte("\n" + h.Code)
			if n := bytes.Count(dt, code); n != 1 {
				return nil, errors.Errorf("%s has %d times what commit %q of the series adds to it, and not once: %q: change it in internal/series as well", rel, n, c.Title, h.Code)
			}
			dt = bytes.Replace(dt, code, []byte("\n"+h.Before), 1)
			hooked = true
		}
	}
	if !hooked {
		return dt, nil
	}
	out, err := format.Source(dt)
	return out, errors.Wrapf(err, "%s without what later commits of the series add to it", rel)
}

// commit creates the commits in a new repository and returns their mails.
func (p *parts) commit(ctx context.Context, dir string, opt Options) ([]Patch, error) {
	repo := &Repository{Dir: filepath.Join(dir, "repository")}
	files, err := p.upstream()
	if err != nil {
		return nil, err
	}
	if err := repo.write(files); err != nil {
		return nil, err
	}
	if err := repo.init(ctx, p.tree.Release()); err != nil {
		return nil, err
	}
	var out []Patch
	for i, c := range p.commits {
		if opt.Upstream && c.ReleaseOnly {
			continue
		}
		if files, err = p.files(i); err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, errors.Errorf("commit %q of the series is empty", c.Title)
		}
		if err := repo.write(files); err != nil {
			return nil, err
		}
		if err := repo.commit(ctx, opt.Author, opt.Date, c.Title+"\n\n"+c.Body); err != nil {
			return nil, err
		}
		pkgs := map[string]bool{}
		for rel := range files {
			pkgs["./"+path.Dir(rel)] = true
		}
		out = append(out, Patch{Commit: c, Packages: slices.Sorted(maps.Keys(pkgs))})
	}
	mails := filepath.Join(dir, "mails")
	names, err := repo.Git(ctx, nil, "format-patch", "--zero-commit", "--full-index", "--no-renames",
		"--signature="+p.tree.Release(), "--output-directory="+mails, fmt.Sprintf("HEAD~%d", len(out)))
	if err != nil {
		return nil, err
	}
	for i, name := range strings.Fields(names) {
		out[i].Name = filepath.Base(name)
		if out[i].Mail, err = os.ReadFile(filepath.Join(mails, out[i].Name)); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	return out, nil
}

// written matches a mail of New. Unlike a mail of git format-patch, it names no commit,
// and its signature is a release of a module, not the version of git.
var written = regexp.MustCompile(`\AFrom 0{40} (?s:.*)\n-- \n(?:` + moduleNames() + `) \S+\n*\z`)

func moduleNames() string {
	var names []string
	for module := range Modules {
		names = append(names, regexp.QuoteMeta(assemble.Options{Module: module}.Name()))
	}
	return strings.Join(names, "|")
}

// Earlier returns the mails of an earlier series in dir. It returns an error if dir has
// a mail that Write did not write: git am would take it for a part of the next series,
// and Write must not remove it, as it may be the only copy.
func Earlier(dir string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "[0-9][0-9][0-9][0-9]-*.patch"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, path := range paths {
		dt, err := os.ReadFile(path)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if !written.Match(dt) {
			return nil, errors.Errorf("%s is not a mail of this series: name another folder", path)
		}
	}
	return paths, nil
}

// Write writes the mails into dir and returns their paths. It removes the mails of an
// earlier series.
func Write(dir string, patches []Patch) ([]string, error) {
	earlier, err := Earlier(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.WithStack(err)
	}
	tmp, err := os.MkdirTemp(dir, ".series-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.RemoveAll(tmp)
	for _, p := range patches {
		if err := os.WriteFile(filepath.Join(tmp, p.Name), p.Mail, 0o644); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	for _, path := range earlier {
		if err := os.Remove(path); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	var out []string
	for _, p := range patches {
		path := filepath.Join(dir, p.Name)
		if err := os.Rename(filepath.Join(tmp, p.Name), path); err != nil {
			return nil, errors.WithStack(err)
		}
		out = append(out, path)
	}
	return out, nil
}
