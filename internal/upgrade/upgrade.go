package upgrade

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// Options select the checks of a release.
type Options struct {
	assemble.Options        // with the release
	From             string // the release that go.mod requires
	SeamsOnly        bool   // do not build or test
	E2E              bool   // with end-to-end tests
}

// Run looks for the seams in a release, tries it, and lists it in the seam list if that
// succeeds. It writes to w what a maintainer must look at.
func Run(ctx context.Context, w io.Writer, opt Options) error {
	u := &upgrade{from: opt.From}
	if err := u.survey(ctx, opt.Options); err != nil {
		return err
	}
	if err := u.reportSeams(w); err != nil {
		return err
	}
	lost := u.lost()
	if len(lost) > 0 || opt.SeamsOnly {
		u.reportRest(w, nil)
	}
	if len(lost) > 0 {
		return errors.Errorf("BuildKit %s has no place for %s", opt.Version, strings.Join(lost, ", "))
	}
	if opt.SeamsOnly {
		return nil
	}
	if opt.E2E {
		if err := apt.Install(ctx, apt.Tests); err != nil {
			return err
		}
	}
	var tr *Trial
	err := u.whileListed(func() error {
		tr = Try(ctx, opt.Options, opt.E2E)
		err := Report(w, []*Trial{tr})
		return cmp.Or(tr.Err, err)
	})
	u.reportRest(w, tr)
	return errors.Wrapf(err, "BuildKit %s", opt.Version)
}

// upgrade is a comparison of a release with the one that go.mod requires.
type upgrade struct {
	from, to string
	list     string // path of the seam list
	sum      string // of to
	known    bool   // to was listed before
	added    bool   // to is listed since
	findings []assemble.Finding
}

// survey fetches the release and looks for the seams in it. It writes nothing.
func (u *upgrade) survey(ctx context.Context, opt assemble.Options) error {
	u.to = opt.Version
	u.list = filepath.Join(opt.Root, assemble.SeamList)
	list, err := seam.Load(u.list)
	if err != nil {
		return err
	}
	from, err := upstream.Fetch(ctx, upstream.Module, u.from, list.Releases[u.from])
	if err != nil {
		return err
	}
	u.sum, u.known = list.Releases[u.to]
	progress.Printf("fetching BuildKit %s", u.to)
	to, err := upstream.Fetch(ctx, upstream.Module, u.to, u.sum)
	if err != nil {
		return err
	}
	u.sum = to.Sum
	u.findings, err = assemble.Survey(from, to, list.Seams)
	return err
}

// whileListed calls f with the release in the seam list, where assemble looks for it.
// The release stays there only if f succeeds, because every release of the list counts
// as supported.
func (u *upgrade) whileListed(f func() error) error {
	if u.known {
		return f()
	}
	err := u.edit(func(dt []byte) ([]byte, error) { return seam.AddRelease(dt, u.to, u.sum) })
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		if undo := u.edit(func(dt []byte) ([]byte, error) { return seam.RemoveRelease(dt, u.to) }); undo != nil {
			return errors.Wrapf(undo, "%v, and", err)
		}
		return err
	}
	u.added = true
	return nil
}

func (u *upgrade) edit(change func([]byte) ([]byte, error)) error {
	dt, err := os.ReadFile(u.list)
	if err != nil {
		return errors.WithStack(err)
	}
	if dt, err = change(dt); err != nil {
		return errors.Wrapf(err, "failed to change the releases of %s", u.list)
	}
	return files.Write(u.list, dt, 0o644)
}

func (u *upgrade) lost() (names []string) {
	for _, f := range u.findings {
		if f.Fate == assemble.Lost {
			names = append(names, f.Seam.Name)
		}
	}
	return names
}

func (u *upgrade) reportSeams(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "SEAM\tFATE\t%s\t%s\tDECLARATION\n", strings.ToUpper(u.from), strings.ToUpper(u.to))
	for _, f := range u.findings {
		place, state := f.New, "same"
		if f.Changes != "" {
			state = "changed"
		}
		if f.Fate == assemble.Lost {
			place, state = "-", "see below"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", f.Seam.Name, f.Fate, f.Old, place, state)
	}
	if err := tw.Flush(); err != nil {
		return errors.WithStack(err)
	}
	_, err := fmt.Fprintf(w, "\nseams: %s\n\n", assemble.Summary(u.findings))
	return errors.WithStack(err)
}

// reportRest prints what a maintainer must look at.
func (u *upgrade) reportRest(w io.Writer, tr *Trial) {
	fmt.Fprintln(w, "\nTo look at:")
	n := 0
	item := func(format string, args ...any) {
		n++
		fmt.Fprintf(w, "\n%d. %s\n", n, fmt.Sprintf(format, args...))
	}
	shown := map[string]bool{}
	for _, f := range u.findings {
		if f.Fate == assemble.Lost {
			item("Seam %s is lost: %v\n   It is there because %s.", f.Seam.Name, f.Err, f.Seam.Why)
		}
		key := f.Seam.Package + " " + f.Seam.In
		if f.Changes == "" || shown[key] {
			continue
		}
		shown[key] = true
		item("Upstream changed %s in %s. Does seam %s still do what it is for: %s?\n\n%s", f.Seam.In, f.Seam.Package, f.Seam.Name, f.Seam.Why, strings.TrimSuffix(f.Changes, "\n"))
	}
	if tr != nil && tr.Err != nil {
		item("%s failed: %v\n   The tree of it is in build/%s. Added files in it are links, so that they can be fixed there.", tr.Stage, tr.Err, u.to)
	}
	if u.added {
		item("%s is listed in %s from now on: commit the line.", u.to, assemble.SeamList)
	}
	if n == 0 {
		fmt.Fprintln(w, "nothing")
	}
}
