// Package conformance runs BuildKit's own tests with upstream's daemon and with
// ours, and compares the results of each test.
//
// The tests of each package run in a separate process, as with go test. Tests that
// need a daemon start one with BuildKit's integration harness, which finds it in
// PATH, and take their images from a registry that this package fills, so nothing is
// pulled. There is no list of tests that are flaky or need a network: upstream's
// results decide, and tests that differ are retried with both daemons.
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

// Options select the tests of a run.
type Options struct {
	Trees    [2]*assemble.Tree
	Bin      [2]string // folders with buildkitd and buildctl
	Registry string    // the registry binary
	Suites   []string
	Run      string // -test.run
	Race     bool   // the daemons have the race detector
	Worker   string // the only one that tests use
	Retries  int
	Output   string        // folder of the reports
	Timeout  time.Duration // of the tests of one package
	Progress func(format string, args ...any)
}

// stopTimeout bounds the time that a test process takes to end after SIGTERM.
const stopTimeout = 30 * time.Second

// unfit matches characters not allowed in the names of folders, and maxName is the
// maximum length of a name.
var unfit = regexp.MustCompile(`[^\w.,+-]+`)

const maxName = 200

// Name returns the name of the folder for the reports. Runs with other options have
// another name, so they do not replace each other's reports.
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

	prefix [2][]string // of the command of a test process, like nsenter, which changes the working directory
	env    [2][]string // added to its environment
}

// races returns the folder that daemons with the race detector write reports to.
func (r *runner) races(flavor int) string {
	return filepath.Join(r.dir, "races", flavorNames[flavor])
}

// path returns the folder that comes first in PATH.
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

// packageResult is a package with its results for both daemons.
type packageResult struct {
	testPackage
	results     [2]Results
	output      [2]string // of the processes
	finished    [2]bool   // the process ran all its tests
	took        [2]time.Duration
	differences []Difference
	broken      error // the tests do not compile
	crash       bool  // the process crashed in each retry with our daemon, and in none with upstream's
}

// compare runs the tests of a package with both daemons, and retries those that differ.
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

// log returns the path of the log of a package, for the n-th retry if n is not 0.
func (r *runner) log(p testPackage, flavor, n int) string {
	name := strings.ReplaceAll(p.name, "/", "_") + "-" + flavorNames[flavor]
	if n > 0 {
		name += fmt.Sprintf("-again%d", n)
	}
	return filepath.Join(r.Output, "logs", name+".log")
}

// Workers are the workers that tests of the harness can use.
var Workers = []string{"oci", "containerd"}

// otherWorkers returns the pattern that matches the workers to skip.
func (r *runner) otherWorkers() string {
	if r.Worker == "containerd" {
		return "^worker=(oci|dockerd)"
	}
	return "^worker=(containerd|dockerd)"
}

// args returns the arguments of a process that runs the tests matching a pattern.
func (r *runner) args(pattern string) []string {
	return []string{"-test.run=" + pattern, "-test.skip=.*/.*/" + r.otherWorkers()}
}

// furtherTries limits the extra retries of a test that is still undecided.
const furtherTries = 20

// retry runs the tests that differ again, and records the results.
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
		r.Progress("%s: rerunning %d tests (%d/%d)", res.name, len(left), n, r.Retries)
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
		r.Progress("%s: rerunning %d tests that are flaky with upstream (%d/%d)", res.name, len(left), n, furtherTries)
		if _, err := r.try(ctx, res.testPackage, bin, left, r.Retries+n); err != nil {
			return err
		}
	}
	for i := range diffs {
		diffs[i].Verdict = judge(diffs[i].Upstream, diffs[i].Graphload)
	}
	// tests that pass alone can still crash the process together
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

// try is the n-th retry of the tests of the differences, with both daemons. It adds
// their results to the differences. finished reports for each daemon whether one
// process ran all tests.
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

// again runs tests once more. If a test crashes the process, again reruns each test
// that did not finish in a separate process. finished reports whether one process was
// enough.
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

// processResult is the result of one test process.
type processResult struct {
	results  Results
	output   string // of the process itself
	finished bool   // it ran all its tests
}

// test runs a test binary and waits for its end.
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
		"REGISTRY_VALIDATION_DISABLED=true", // allows pushes of images with layers at URLs
		"OTEL_TRACES_EXPORTER=none",
		"GORACE=atexit_sleep_ms=0 log_path="+filepath.Join(r.races(flavor), "race"),
		marker+"="+r.dir,
	)
	cmd.Env = append(cmd.Env, r.env[flavor]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only this process

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
		// daemons that a crashed process leaves behind hold the pipe open
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

// environ returns the environment without the variables that make the harness skip
// some or all tests.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"SKIP_INTEGRATION_TESTS", "BUILDKIT_WORKER_RANDOM", "TEST_DOCKERD"}, name)
	})
}

// finished reports whether a process ran all its tests. A process whose tests fail
// prints FAIL at its end; one that crashes or times out has another exit code.
func finished(output string, exitCode int) bool {
	return exitCode == 0 || exitCode == 1 && slices.ContainsFunc(strings.Split(output, "\n"), func(line string) bool {
		return strings.HasSuffix(line, "FAIL")
	})
}

// counter counts tests and reports progress regularly.
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
