package series

import (
	"context"
	"os"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// Check commits one patch after the other, and builds and tests each. The
// repository stays at one path, so that the build cache serves a second check.
func Check(ctx context.Context, t *assemble.Tree, patches []Patch) error {
	dir := t.BuildDir() + "-series"
	if err := os.RemoveAll(dir); err != nil {
		return errors.WithStack(err)
	}
	repo, err := Import(ctx, dir, t.Upstream.Dir, t.Release())
	if err != nil {
		return err
	}
	for i, p := range patches {
		if err := repo.Apply(ctx, p); err != nil {
			return err
		}
		progress.Printf("%s, commit %d of %d: %s", t.Release(), i+1, len(patches), p.Title)
		// the tests in client are for upstream's integration harness: with -short they
		// skip themselves, as there are no daemon and images
		for _, args := range [][]string{
			{"build", "-buildvcs=false", "./..."},
			append([]string{"test", "-buildvcs=false", "-short"}, p.Packages...),
		} {
			progress.Printf("go %s", strings.Join(args, " "))
			cmd := gomod.Command(ctx, dir, args...)
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			if err := cmd.Run(); err != nil {
				return errors.Wrapf(err, "commit %q: go %s", p.Title, args[0])
			}
		}
		if status, err := repo.Git(ctx, nil, "status", "--porcelain"); err != nil || status != "" {
			return errors.Errorf("commit %q leaves changes behind: %s %v", p.Title, status, err)
		}
	}
	progress.Printf("%s: all %d commits build and pass the tests of their packages", t.Release(), len(patches))
	return nil
}
