package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func releasesCommand() *cli.Command {
	return &cli.Command{
		Name:      "releases",
		Usage:     "assemble, vet, build and test releases of the seam list, all of them by default",
		ArgsUsage: "[vX.Y.Z...]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-e2e", Usage: "without the end-to-end tests"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			versions, err := opt.Releases()
			if err != nil {
				return err
			}
			only := cmd.Args().Slice()
			if version := releaseFlag(cmd); version != "" && len(only) == 0 {
				only = []string{version}
			}
			if len(only) > 0 {
				for _, version := range only {
					if !slices.Contains(versions, version) {
						return errors.Errorf("%s is not a known release, %s are: try it with graphload upgrade %s", version, strings.Join(versions, ", "), version)
					}
				}
				versions = only
			}
			e2e := !cmd.Bool("no-e2e")
			if e2e {
				if err := installPackages(ctx); err != nil {
					return err
				}
			}
			var trials []*trial
			for _, version := range versions {
				opt.Version = version
				tr := try(ctx, opt, e2e)
				if ctx.Err() != nil {
					return errors.WithStack(context.Cause(ctx))
				}
				if tr.err != nil {
					progressf("%s: %s failed: %v", version, tr.stage, tr.err)
				}
				trials = append(trials, tr)
			}
			return reportTrials(os.Stdout, trials)
		},
	}
}

// trial is what was found out about one release. A trial ends at the first
// stage that fails, but all kinds of tests are run.
type trial struct {
	version string
	seams   int
	stage   string // the one that failed, if err is set
	err     error
	added   *testCounts // added tests, with the race detector
	all     *testCounts // all tests of the packages
	e2e     *testCounts // end-to-end tests
	took    time.Duration
}

func try(ctx context.Context, opt assemble.Options, e2e bool) *trial {
	tr := &trial{version: opt.Version}
	start := time.Now()
	defer func() { tr.took = time.Since(start) }()
	fail := func(stage string, err error) bool {
		if err != nil && tr.err == nil {
			tr.stage, tr.err = stage, err
		}
		return err != nil
	}

	t, err := writeTree(ctx, opt)
	if fail("assemble", err) {
		return tr
	}
	tr.seams = len(t.Matches)
	if fail("vet", vet(ctx, t)) {
		return tr
	}
	bin, err := buildBinaries(ctx, opt, false)
	if fail("build", err) {
		return tr
	}
	unmodified := opt
	unmodified.Unmodified = true
	if e2e {
		if _, err := buildBinaries(ctx, unmodified, false); fail("build of upstream", err) {
			return tr
		}
		if fail("build of buildx", buildBuildx(ctx, opt.Root)) {
			return tr
		}
	}
	added, err := addedTests(t)
	if fail("added tests", err) {
		return tr
	}
	tr.added, err = countTests(ctx, t.Dir, nil, slices.Concat([]string{"-race", "-short", "-timeout", "30m", "-run", "^(" + strings.Join(added, "|") + ")$"}, treePackages)...)
	fail("added tests", err)
	tr.all, err = countTests(ctx, t.Dir, nil, slices.Concat([]string{"-short", "-timeout", "30m"}, treePackages)...)
	fail("in-package tests", err)
	if e2e {
		tr.e2e, err = countTests(ctx, opt.Root, []string{"GRAPHLOAD_BIN=" + bin}, "-short", "-timeout", "20m", "./integration/")
		fail("end-to-end tests", err)
	}
	return tr
}

// vet checks the packages that the change is in. Upstream leaves the cancel
// functions of some contexts alone, and says so to its own linter.
func vet(ctx context.Context, t *assemble.Tree) error {
	args := append([]string{"vet", "-lostcancel=false"}, t.Packages()...)
	progressf("%s: go %s", t.Version, strings.Join(args, " "))
	cmd := gomod.Command(ctx, t.Dir, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return errors.Wrap(cmd.Run(), "go vet")
}

// testCounts are the outcomes of tests, subtests included.
type testCounts struct {
	passed, skipped int
	failed          []string
}

func (c *testCounts) String() string {
	if c == nil {
		return "not run"
	}
	return fmt.Sprintf("%d pass, %d fail, %d skip", c.passed, len(c.failed), c.skipped)
}

// countTests runs go test and counts. What failing tests print is shown.
func countTests(ctx context.Context, dir string, env []string, args ...string) (*testCounts, error) {
	args = slices.Concat([]string{"test", "-json", "-buildvcs=false"}, args)
	progressf("%s: go %s", filepath.Base(dir), strings.Join(args, " "))
	cmd := gomod.Command(ctx, dir, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.WithStack(err)
	}
	counts := readTests(out, os.Stderr)
	if err := cmd.Wait(); err != nil {
		if len(counts.failed) > 0 {
			return counts, errors.Errorf("failed: %s", strings.Join(counts.failed, " "))
		}
		return counts, errors.Wrapf(err, "go test in %s", dir)
	}
	return counts, nil
}

// readTests reads the events of go test -json, and writes the output of what
// fails to w.
func readTests(r io.Reader, w io.Writer) *testCounts {
	counts := &testCounts{}
	output := map[string]*strings.Builder{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var ev struct {
			Action, Package, ImportPath, Test, Output string
		}
		if err := json.Unmarshal(sc.Bytes(), &ev); err != nil {
			fmt.Fprintf(w, "%s\n", sc.Bytes())
			continue
		}
		key := ev.Package + ev.ImportPath + " " + ev.Test
		switch ev.Action {
		case "output", "build-output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(ev.Output)
		case "fail", "build-fail":
			if sb := output[key]; sb != nil {
				fmt.Fprint(w, sb.String())
			}
			if ev.Test != "" {
				counts.failed = append(counts.failed, ev.Test)
			}
			delete(output, key)
		case "pass", "skip":
			if ev.Test != "" && ev.Action == "pass" {
				counts.passed++
			} else if ev.Test != "" {
				counts.skipped++
			}
			delete(output, key)
		}
	}
	return counts
}

// reportTrials prints the table. It fails when a release did.
func reportTrials(w io.Writer, trials []*trial) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "RELEASE\tSEAMS\tADDED TESTS, RACE\tALL OF THE PACKAGES\tEND-TO-END TESTS\tTIME\tRESULT")
	var failed []string
	for _, tr := range trials {
		result := "ok"
		if tr.err != nil {
			result = tr.stage + " failed"
			failed = append(failed, tr.version+": "+result)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", tr.version, tr.seams, tr.added, tr.all, tr.e2e, tr.took.Round(time.Second), result)
	}
	if err := tw.Flush(); err != nil {
		return errors.WithStack(err)
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, ", "))
	}
	return nil
}
