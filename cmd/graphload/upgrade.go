package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:      "upgrade",
		Usage:     "try a release of BuildKit, and say what a person has to look at",
		ArgsUsage: "vX.Y.Z",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "seams-only", Usage: "only look for the seams: build and test nothing"},
			&cli.BoolFlag{Name: "no-e2e", Usage: "without the end-to-end tests"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() != 1 {
				return errors.New("name one release, as in graphload upgrade v0.34.2")
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			u := &upgrade{from: opt.Version}
			opt.Version = cmd.Args().First()
			if err := u.survey(ctx, opt); err != nil {
				return err
			}
			if err := u.reportSeams(os.Stdout); err != nil {
				return err
			}
			if lost := u.lost(); len(lost) > 0 {
				u.reportRest(os.Stdout, nil)
				return errors.Errorf("BuildKit %s has no place for %s", opt.Version, strings.Join(lost, ", "))
			}
			var tr *trial
			if !cmd.Bool("seams-only") {
				e2e := !cmd.Bool("no-e2e")
				if e2e {
					if err := installPackages(ctx); err != nil {
						return err
					}
				}
				tr = try(ctx, opt, e2e)
				if err := reportTrials(os.Stdout, []*trial{tr}); err != nil {
					u.reportRest(os.Stdout, tr)
					return errors.Wrapf(tr.err, "BuildKit %s", opt.Version)
				}
			}
			u.reportRest(os.Stdout, tr)
			return nil
		},
	}
}

// upgrade is a comparison of a release with the one that go.mod requires.
type upgrade struct {
	from, to string
	added    bool // to was not known before
	findings []assemble.Finding
}

// survey fetches the release, records its checksum if it is new, and looks for
// the seams in it.
func (u *upgrade) survey(ctx context.Context, opt assemble.Options) error {
	u.to = opt.Version
	path := filepath.Join(opt.Root, assemble.SeamList)
	list, err := seam.Load(path)
	if err != nil {
		return err
	}
	from, err := upstream.Fetch(ctx, u.from, list.Releases[u.from])
	if err != nil {
		return err
	}
	sum, known := list.Releases[u.to]
	progressf("fetching BuildKit %s", u.to)
	to, err := upstream.Fetch(ctx, u.to, sum)
	if err != nil {
		return err
	}
	if !known {
		if err := recordRelease(path, to.Version, to.Sum); err != nil {
			return err
		}
		u.added = true
	}
	u.findings, err = assemble.Survey(from, to, list.Seams)
	return err
}

// recordRelease adds a release to the seam list.
func recordRelease(path, version, sum string) error {
	dt, err := os.ReadFile(path)
	if err != nil {
		return errors.WithStack(err)
	}
	dt, err = seam.AddRelease(dt, version, sum)
	if err != nil {
		return errors.Wrapf(err, "failed to record %s in %s", version, path)
	}
	return writeFile(path, dt)
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

// reportRest prints what a person has to look at.
func (u *upgrade) reportRest(w io.Writer, tr *trial) {
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
	if tr != nil && tr.err != nil {
		item("%s failed: %v", tr.stage, tr.err)
	}
	if u.added {
		item("%s is listed in %s from now on. Commit the line when the release is served, remove it when it is not.", u.to, assemble.SeamList)
	}
	if n == 0 {
		fmt.Fprintln(w, "nothing")
	}
}
