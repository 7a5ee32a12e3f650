// Package upgrade tries releases of BuildKit, and compares a new one with the one that
// go.mod requires.
package upgrade

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/gotest"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// Trial has the results for one release. A trial ends at the first stage that fails, but
// runs all kinds of tests.
type Trial struct {
	Version string
	seams   int
	Stage   string // the one that failed, if err is set
	Err     error
	added   *gotest.Counts // added tests, with the race detector
	all     *gotest.Counts // all tests of the packages
	e2e     *gotest.Counts // end-to-end tests
	took    time.Duration
}

// Try assembles, vets, builds and tests a release.
func Try(ctx context.Context, opt assemble.Options, e2e bool) *Trial {
	tr := &Trial{Version: opt.Version}
	start := time.Now()
	defer func() { tr.took = time.Since(start) }()
	fail := func(stage string, err error) bool {
		if err != nil && tr.Err == nil {
			tr.Stage, tr.Err = stage, err
		}
		return err != nil
	}

	t, err := build.Tree(ctx, opt)
	if fail("assemble", err) {
		return tr
	}
	tr.seams = len(t.Matches)
	if fail("vet", vet(ctx, t)) {
		return tr
	}
	bin, err := build.Daemon(ctx, opt, false)
	if fail("build", err) {
		return tr
	}
	if e2e {
		other := opt
		other.Unmodified = true
		_, err := build.Daemon(ctx, other, false)
		if err == nil {
			err = build.Buildx(ctx, opt.Root)
		}
		if fail("build of upstream's daemon and of buildx", err) {
			return tr
		}
	}
	added, err := gotest.AddedArgs(t)
	if fail("added tests", err) {
		return tr
	}
	tr.added, err = gotest.Count(ctx, t.Dir, nil, added...)
	fail("added tests", err)
	tr.all, err = gotest.Count(ctx, t.Dir, nil, slices.Concat([]string{"-short", "-timeout", "30m"}, gotest.Packages(t))...)
	fail("in-package tests", err)
	if e2e {
		tr.e2e, err = gotest.Count(ctx, opt.Root, []string{"GRAPHLOAD_BIN=" + bin}, "-short", "-timeout", "20m", "./integration/")
		fail("end-to-end tests", err)
	}
	return tr
}

// vet checks the packages with changes. It skips lostcancel, because upstream does not
// call the cancel functions of some contexts, as it tells its own linter.
func vet(ctx context.Context, t *assemble.Tree) error {
	args := append([]string{"vet", "-lostcancel=false"}, t.Packages()...)
	progress.Printf("%s: go %s", t.Version, strings.Join(args, " "))
	cmd := gomod.Command(ctx, t.Dir, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return errors.Wrap(cmd.Run(), "go vet")
}

// Report prints the table. It returns an error if a release failed.
func Report(w io.Writer, trials []*Trial) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "RELEASE\tSEAMS\tADDED TESTS, RACE\tALL OF THE PACKAGES\tEND-TO-END TESTS\tTIME\tRESULT")
	var failed []string
	for _, tr := range trials {
		result := "ok"
		if tr.Err != nil {
			result = tr.Stage + " failed"
			failed = append(failed, tr.Version+": "+result)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", tr.Version, tr.seams, tr.added, tr.all, tr.e2e, tr.took.Round(time.Second), result)
	}
	if err := tw.Flush(); err != nil {
		return errors.WithStack(err)
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, ", "))
	}
	return nil
}
