// Package conformance runs BuildKit's own tests with upstream's daemon and with
// ours, and compares how each of them ended.
//
// The tests of a package run in their own process, as with go test. Those that
// need a daemon start one each with BuildKit's integration harness, which finds
// it in PATH, and take their images from a registry that is filled here:
// nothing is pulled. No test is known to be flaky or to need a network: upstream
// decides, and what differs is tried again on both.
package conformance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/pkg/errors"
)

// Flavors of BuildKit, by index.
const (
	Upstream = iota
	Graphload
)

var flavorNames = [...]string{"upstream", "graphload"}

// Options select what is run.
type Options struct {
	Trees    [2]*assemble.Tree
	Bin      [2]string // folders with buildkitd and buildctl
	Registry string    // the registry binary
	Suites   []string
	Run      string // -test.run
	Race     bool   // the daemons have the race detector
	Worker   string // the only one that is used
	Retries  int
	Output   string        // folder of the reports
	Timeout  time.Duration // of the tests of one package
	Progress func(format string, args ...any)
}

// stopTimeout is how long a test process may take to end after it was told to.
const stopTimeout = 30 * time.Second

// unfit matches characters not allowed in the names of folders, and maxName is how long
// a name can be.
var unfit = regexp.MustCompile(`[^\w.,+-]+`)

const maxName = 200

// Name names the folder of the reports, so that runs that differ do not replace each
// other's.
func (o Options) Name(version string) string {
	parts := []string{version, o.Worker}
	if o.Race {
		parts = append(parts, "race")
	}
	if len(o.Suites) < len(Suites) {
		parts = append(parts, o.Suites...)
	}
	if o.Run != "" {
		parts = append(parts, o.Run)
	}
	name := unfit.ReplaceAllString(strings.Join(parts, "-"), "_")
	return name[:min(len(name), maxName)]
}

// Run runs the suites and writes the reports.
func Run(ctx context.Context, opt Options) (_ *Report, retErr error) {
	dir, err := os.MkdirTemp("", "conf-") // short, for the sockets in it
	if err != nil {
		return nil, errors.WithStack(err)
	}
	r := &runner{Options: opt, dir: dir}
	defer func() {
		if err := clean(dir); retErr == nil {
			retErr = err
		}
	}()
	if err := os.MkdirAll(filepath.Join(opt.Output, "logs"), 0o755); err != nil {
		return nil, errors.WithStack(err)
	}
	for i, bin := range opt.Bin {
		if err := os.MkdirAll(r.races(i), 0o755); err != nil {
			return nil, errors.WithStack(err)
		}
		for _, src := range []string{filepath.Join(bin, "buildkitd"), filepath.Join(bin, "buildctl"), opt.Registry} {
			if err := r.link(i, src); err != nil {
				return nil, err
			}
		}
	}
	pkgs, err := listPackages(ctx, opt.Trees[Graphload], opt.Suites)
	if err != nil {
		return nil, err
	}
	m, err := newMirror(ctx, opt.Registry, filepath.Join(dir, "mirror"))
	if err != nil {
		return nil, errors.Wrap(err, "failed to fill the registry")
	}
	defer m.close()

	report, err := newReport(ctx, opt)
	if err != nil {
		return nil, err
	}
	if err := report.Write(opt.Output); err != nil {
		return nil, err
	}
	for i, p := range pkgs {
		res, err := r.compare(ctx, p)
		if err != nil {
			return nil, errors.Wrap(err, p.name)
		}
		report.add(res)
		if i+1 == len(pkgs) || pkgs[i+1].suite != p.suite {
			s := report.suite(p.suite)
			opt.Progress("%s: upstream %s, graphload %s", p.suite, s.Upstream, s.Graphload)
		}
		if report.Races, err = newRaces(r.races(Upstream), r.races(Graphload), opt.Trees[Graphload].Added); err != nil {
			return nil, err
		}
		if err := report.Write(opt.Output); err != nil {
			return nil, err
		}
	}
	report.judge()
	report.Complete = true
	return report, report.Write(opt.Output)
}

type runner struct {
	Options
	dir string

	prefix [2][]string // of the command of a test process, as nsenter, which changes the folder
	env    [2][]string // more of its environment
}

// races is the folder that daemons with the race detector write reports to.
func (r *runner) races(flavor int) string {
	return filepath.Join(r.dir, "races", flavorNames[flavor])
}

// path is the folder that comes first in PATH.
func (r *runner) path(flavor int) string {
	return filepath.Join(r.dir, "bin", flavorNames[flavor])
}

func (r *runner) link(flavor int, src string) error {
	name := filepath.Base(src)
	if src == r.Registry {
		name = "registry"
	}
	if _, err := os.Stat(src); err != nil {
		return errors.Wrapf(err, "no %s to test, build it first", name)
	}
	if err := os.MkdirAll(r.path(flavor), 0o755); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Symlink(src, filepath.Join(r.path(flavor), name)))
}

// packageResult is a package with the results of both.
type packageResult struct {
	testPackage
	results     [2]Results
	output      [2]string // of the processes
	finished    [2]bool   // these ran all their tests
	took        [2]time.Duration
	differences []Difference
	broken      error // they do not compile
	crash       bool  // what was tried again ended ours each time, and upstream's never
}

// compare runs the tests of a package with both, and again those that differ.
func (r *runner) compare(ctx context.Context, p testPackage) (*packageResult, error) {
	var bin [2]string
	defer func() {
		for _, b := range bin {
			os.Remove(b)
		}
	}()
	for i := range bin {
		if i > 0 && !p.changed {
			bin[i] = bin[i-1] // the source code is the same
			break
		}
		bin[i] = filepath.Join(r.dir, fmt.Sprintf("%d.test", i))
		if err := p.compile(ctx, r.Trees[i], bin[i]); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			r.Progress("%s", err)
			return &packageResult{testPackage: p, broken: err}, nil
		}
		if _, err := os.Stat(bin[i]); err != nil {
			bin[i] = "" // this tree has no such package, or no tests in it
		}
	}
	res := &packageResult{testPackage: p}
	for i := range bin {
		if i > 0 && !p.changed && !p.daemons {
			res.results[i], res.output[i] = res.results[i-1], res.output[i-1]
			res.finished[i], res.took[i] = res.finished[i-1], res.took[i-1]
			break
		}
		start := time.Now()
		pr, err := r.test(ctx, p, i, bin[i], r.args(cmp.Or(r.Options.Run, ".")))
		if err != nil {
			return nil, err
		}
		res.results[i], res.output[i], res.finished[i], res.took[i] = pr.results, pr.output, pr.finished, time.Since(start)
		if err := writeLog(r.log(p, i, 0), res.results[i], res.output[i]); err != nil {
			return nil, err
		}
	}
	return res, r.retry(ctx, res, bin)
}

// log is the file for what a package has printed, the n-th time after the first.
func (r *runner) log(p testPackage, flavor, n int) string {
	name := strings.ReplaceAll(p.name, "/", "_") + "-" + flavorNames[flavor]
	if n > 0 {
		name += fmt.Sprintf("-again%d", n)
	}
	return filepath.Join(r.Output, "logs", name+".log")
}

// Workers are those that the tests of the harness can be run with.
var Workers = []string{"oci", "containerd"}

// otherWorkers is the pattern of the workers that are not used.
func (r *runner) otherWorkers() string {
	if r.Worker == "containerd" {
		return "^worker=(oci|dockerd)"
	}
	return "^worker=(containerd|dockerd)"
}

// args are the arguments of a process that runs the tests of a pattern.
func (r *runner) args(pattern string) []string {
	return []string{"-test.run=" + pattern, "-test.skip=.*/.*/" + r.otherWorkers()}
}

// furtherTries is how often a test is tried after the retries while it is undecided.
const furtherTries = 20

// retry runs the tests that differ again, and records what came out.
func (r *runner) retry(ctx context.Context, res *packageResult, bin [2]string) error {
	up, gl := res.results[Upstream], res.results[Graphload]
	tests := candidates(up, gl)
	diffs := make([]Difference, len(tests))
	for i, test := range tests {
		diffs[i] = Difference{
			Package: res.name, Test: test,
			Upstream: []Status{up.status(test)}, Graphload: []Status{gl.status(test)},
		}
		if g := gl[test]; g != nil {
			diffs[i].Output = g.Output
		}
		r.Progress("%s: %s differs: upstream %s, graphload %s", res.name, test, up.status(test), gl.status(test))
	}
	var crashes [2]int
	left := make([]*Difference, len(diffs))
	for i := range diffs {
		left[i] = &diffs[i]
	}
	for n := 1; n <= r.Retries && len(left) > 0; n++ {
		r.Progress("%s: trying %d tests again (%d/%d)", res.name, len(left), n, r.Retries)
		finished, err := r.try(ctx, res.testPackage, bin, left, n)
		if err != nil {
			return err
		}
		for flavor := range finished {
			if !finished[flavor] {
				crashes[flavor]++
			}
		}
	}
	for n := 1; n <= furtherTries; n++ {
		left = slices.DeleteFunc(left, func(d *Difference) bool { return !undecided(d.Upstream, d.Graphload) })
		if len(left) == 0 {
			break
		}
		r.Progress("%s: trying %d tests further that upstream fails at times (%d/%d)", res.name, len(left), n, furtherTries)
		if _, err := r.try(ctx, res.testPackage, bin, left, r.Retries+n); err != nil {
			return err
		}
	}
	for i := range diffs {
		diffs[i].Verdict = judge(diffs[i].Upstream, diffs[i].Graphload)
	}
	// tests that pass by themselves can still end the process together
	res.crash = crashes[Graphload] > 0 && crashes[Graphload] == r.Retries && crashes[Upstream] == 0
	verdicts := others(up, gl)
	for _, test := range slices.Sorted(maps.Keys(verdicts)) {
		diffs = append(diffs, Difference{
			Package: res.name, Test: test, Verdict: verdicts[test],
			Upstream: []Status{up.status(test)}, Graphload: []Status{gl.status(test)},
		})
	}
	res.differences = diffs
	return nil
}

// try runs the tests of the differences with both, the n-th time after the first,
// and adds how they ended. finished tells which of the two ran them in one process.
func (r *runner) try(ctx context.Context, p testPackage, bin [2]string, diffs []*Difference, n int) (finished [2]bool, _ error) {
	tests := make([]string, len(diffs))
	for i, d := range diffs {
		tests[i] = d.Test
	}
	for flavor := range bin {
		results, output, ok, err := r.again(ctx, p, flavor, bin[flavor], tests)
		if err != nil {
			return finished, err
		}
		finished[flavor] = ok
		if err := writeLog(r.log(p, flavor, n), results, output); err != nil {
			return finished, err
		}
		for _, d := range diffs {
			list := &d.Upstream
			if flavor == Graphload {
				list = &d.Graphload
			}
			*list = append(*list, results.status(d.Test))
		}
	}
	return finished, nil
}

// again runs tests once more. One that ends its process takes others with it:
// those that did not come to their end then run in a process each. finished tells if
// that was not needed.
func (r *runner) again(ctx context.Context, p testPackage, flavor int, bin string, tests []string) (_ Results, output string, finished bool, _ error) {
	patterns := again(tests)
	run := func(pattern string) (*processResult, error) {
		return r.test(ctx, p, flavor, bin, r.args(pattern))
	}
	all := slices.Compact(slices.Sorted(slices.Values(patterns)))
	pr, err := run(strings.Join(all, "|"))
	if err != nil {
		return nil, "", false, err
	}
	results, output := pr.results, pr.output
	if pr.finished || len(all) == 1 {
		return results, output, pr.finished, nil
	}
	for _, pattern := range all {
		var left []string
		for i, test := range tests {
			if patterns[i] == pattern && !results.status(test).ended() {
				left = append(left, test)
			}
		}
		if len(left) == 0 {
			continue
		}
		alone, err := run(pattern)
		if err != nil {
			return nil, "", false, err
		}
		for _, test := range left {
			if result, ok := alone.results[test]; ok {
				results[test] = result
			}
		}
		output += alone.output
	}
	return results, output, false, nil
}

// processResult is what came out of one process.
type processResult struct {
	results  Results
	output   string // of the process itself
	finished bool   // it ran all its tests
}

// test runs a test binary to its end.
func (r *runner) test(ctx context.Context, p testPackage, flavor int, bin string, args []string) (*processResult, error) {
	results := Results{}
	if ctx.Err() != nil {
		return nil, errors.WithStack(context.Cause(ctx))
	}
	if bin == "" {
		return &processResult{results: results, finished: true}, nil
	}
	tmp := filepath.Join(r.dir, "t")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return nil, errors.WithStack(err)
	}
	dir := p.dir(r.Trees[flavor])
	if _, err := os.Stat(dir); err != nil {
		dir = p.dir(r.Trees[Graphload])
	}
	args = slices.Concat(r.prefix[flavor], []string{"env", "--chdir", dir, bin, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + r.Timeout.String()}, args)
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // interrupted below
	cmd.Env = append(environ(),
		"PATH="+r.path(flavor)+":"+os.Getenv("PATH"),
		"PWD="+dir,
		"TMPDIR="+tmp,
		"BUILDKIT_REGISTRY_MIRROR_DIR="+filepath.Join(r.dir, "mirror"),
		"REGISTRY_VALIDATION_DISABLED=true", // pushes with layers at URLs
		"OTEL_TRACES_EXPORTER=none",
		"GORACE=atexit_sleep_ms=0 log_path="+filepath.Join(r.races(flavor), "race"),
		marker+"="+r.dir,
	)
	cmd.Env = append(cmd.Env, r.env[flavor]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us

	out, w, err := os.Pipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer out.Close()
	convert := exec.Command("go", "tool", "test2json", "-t", "-p", p.name) //nolint:noctx // ends with its input
	convert.Dir = r.Trees[Graphload].Dir
	convert.Stdin = out
	convert.Env = append(os.Environ(), "GOWORK=off")
	convert.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	events, err := convert.StdoutPipe()
	if err != nil {
		w.Close()
		return nil, errors.WithStack(err)
	}
	if err := convert.Start(); err != nil {
		w.Close()
		return nil, errors.WithStack(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		convert.Wait()
		return nil, errors.WithStack(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		cmd.Wait() // its status is in the events
		// daemons that a crashed process leaves hold the pipe
		killMarked(r.dir)
	}()
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	go func() {
		defer close(stopped)
		select {
		case <-exited:
			return
		case <-ctx.Done():
		}
		cmd.Process.Signal(syscall.SIGTERM) // the harness ends its daemons
		select {
		case <-exited:
		case <-time.After(stopTimeout):
			killMarked(r.dir)
		}
		<-exited
	}()

	began := time.Now()
	c := &counter{reported: began, report: func(counts Counts) {
		r.Progress("%s on %s, %s: %s so far", p.name, flavorNames[flavor], time.Since(began).Round(time.Second), counts)
	}}
	output, err := results.parse(events, c.count)
	if err != nil {
		return nil, err
	}
	if err := convert.Wait(); err != nil {
		return nil, errors.Wrap(err, "go tool test2json")
	}
	<-exited
	if ctx.Err() != nil {
		return nil, errors.WithStack(context.Cause(ctx))
	}
	return &processResult{
		results: results, output: output, finished: finished(output, cmd.ProcessState.ExitCode()),
	}, clean(tmp)
}

// environ is the environment without what makes the harness leave out tests, or
// all of them.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"SKIP_INTEGRATION_TESTS", "BUILDKIT_WORKER_RANDOM", "TEST_DOCKERD"}, name)
	})
}

// finished tells if a process ran all its tests. One with tests that fail says so
// at its end; one that crashes or runs into its timeout has another exit code.
func finished(output string, exitCode int) bool {
	return exitCode == 0 || exitCode == 1 && slices.ContainsFunc(strings.Split(output, "\n"), func(line string) bool {
		return strings.HasSuffix(line, "FAIL")
	})
}

// counter counts tests, and reports progress now and then.
type counter struct {
	report   func(Counts)
	counts   Counts
	reported time.Time
}

const progressInterval = 20 * time.Second

func (c *counter) count(s Status) {
	c.counts.add(s)
	if time.Since(c.reported) > progressInterval {
		c.reported = time.Now()
		c.report(c.counts)
	}
}
