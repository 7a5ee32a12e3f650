package series

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/mod/modfile"
)

// PlanOnto finds the places of all seams in the commit checked out in checkout. It
// extracts the commit into dir, which must be empty.
func PlanOnto(ctx context.Context, opt assemble.Options, checkout, dir string) (*assemble.Tree, error) {
	module, err := opt.Path()
	if err != nil {
		return nil, err
	}
	c, err := OpenCheckout(ctx, checkout, module)
	if err != nil {
		return nil, err
	}
	src, err := c.Extract(ctx, dir)
	if err != nil {
		return nil, err
	}
	opt.Version = src.Version
	t, err := assemble.PlanSource(opt, src)
	if err != nil {
		return nil, errors.Wrap(err, checkout)
	}
	return t, c.RequireClean(ctx, slices.Concat(slices.Sorted(maps.Keys(t.Changed)), t.Added))
}

// Checkout is a git checkout of a module, at a commit to which upstream would apply
// changes. The methods only read it.
type Checkout struct {
	Dir    string // the folder of its go.mod
	Module string // path
	Commit string
}

// OpenCheckout opens the checkout of a module in dir.
func OpenCheckout(ctx context.Context, dir, module string) (*Checkout, error) {
	c := &Checkout{Module: module}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, errors.Errorf("%s is not a folder", dir)
	}
	top, err := git(ctx, dir, nil, nil, "rev-parse", "--show-toplevel")
	if err != nil {
		return nil, errors.Wrapf(err, "%s is not a git checkout of %s", dir, module)
	}
	c.Dir = strings.TrimSuffix(top, "\n")
	commit, err := c.git(ctx, "rev-parse", "--verify", "HEAD^{commit}")
	if err != nil {
		return nil, errors.Errorf("%s has no commit", dir)
	}
	c.Commit = strings.TrimSpace(commit)
	gomod, err := c.git(ctx, "show", c.Commit+":go.mod")
	if err != nil {
		return nil, errors.Errorf("%s is not a git checkout of %s: %s has no go.mod", dir, module, c.Dir)
	}
	if got := modfile.ModulePath([]byte(gomod)); got != module {
		return nil, errors.Errorf("%s is not a git checkout of %s but of %s", dir, module, got)
	}
	return c, nil
}

// Version returns the short name of the commit.
func (c *Checkout) Version() string {
	return c.Commit[:12]
}

// git runs git in the checkout without changing it.
func (c *Checkout) git(ctx context.Context, args ...string) (string, error) {
	return c.gitEnv(ctx, nil, args...)
}

func (c *Checkout) gitEnv(ctx context.Context, env []string, args ...string) (string, error) {
	args = append([]string{"--no-optional-locks", "--literal-pathspecs", "-c", "core.fsmonitor=false"}, args...)
	return git(ctx, c.Dir, nil, env, args...)
}

// Extract writes the files of the commit into dir.
func (c *Checkout) Extract(ctx context.Context, dir string) (*upstream.Source, error) {
	index, err := os.MkdirTemp("", "graphload-index-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.RemoveAll(index)
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(index, "index")}
	for _, args := range [][]string{
		{"read-tree", c.Commit},
		{"checkout-index", "--all", "--prefix=" + dir + "/"},
	} {
		args = append([]string{"-c", "core.sparseCheckout=false", "-c", "core.autocrlf=false"}, args...)
		if _, err := c.gitEnv(ctx, env, args...); err != nil {
			return nil, err
		}
	}
	return &upstream.Source{Module: c.Module, Version: c.Version(), Dir: dir}, nil
}

// RequireClean returns an error if files with these paths have uncommitted changes,
// because git am would refuse the series.
func (c *Checkout) RequireClean(ctx context.Context, paths []string) error {
	status, err := c.git(ctx, append([]string{"status", "--porcelain", "--no-renames", "--untracked-files=all", "--"}, paths...)...)
	if err != nil {
		return err
	}
	var changed []string
	for line := range strings.Lines(status) {
		changed = append(changed, strings.TrimSpace(line[2:]))
	}
	if len(changed) > 0 {
		return errors.Errorf("%s has changes that are not committed in files of the series: %s", c.Dir, strings.Join(changed, ", "))
	}
	return nil
}
