// Package gotest runs go test and reads its reports.
package gotest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// Run runs go test in a folder and shows its output.
func Run(ctx context.Context, dir string, args ...string) error {
	args = append([]string{"test", "-buildvcs=false"}, args...)
	rel, err := filepath.Rel(filepath.Dir(filepath.Dir(dir)), dir)
	if err != nil {
		rel = dir
	}
	progress.Printf("%s: go %s", rel, strings.Join(args, " "))
	cmd := gomod.Command(ctx, dir, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Wrapf(cmd.Run(), "go test in %s", dir)
}

// dependents are packages without changes that depend most on the changed code: sessions
// and the steps of LLB.
var dependents = []string{"./session/...", "./solver/llbsolver/..."}

// Packages returns the packages of a tree to test, as patterns for the go command.
func Packages(t *assemble.Tree) []string {
	pkgs := t.Packages()
	if t.Module == "" {
		pkgs = append(pkgs, dependents...)
	}
	return pkgs
}

// needRoot are packages in which upstream's tests need root to mount. Added tests do
// not.
var needRoot = []string{"./cache"}

// AddedArgs returns the arguments of go test for the added tests of a tree, with the
// race detector. They leave out upstream's own tests, some of which report data races of
// upstream's scheduler.
func AddedArgs(t *assemble.Tree) ([]string, error) {
	var names []string
	for _, rel := range t.Added {
		found, err := Functions(t.Source(rel), "Test", "Fuzz")
		if err != nil {
			return nil, err
		}
		names = append(names, found...)
	}
	return append([]string{"-race", "-short", "-timeout", "30m", "-run", "^(" + strings.Join(names, "|") + ")$"}, Packages(t)...), nil
}

// Tree runs the added tests of a tree with the race detector, and then all tests of the
// packages without it. Benchmarks run once, so that they keep working. Tests that need
// images of BuildKit's integration harness skip themselves with -short. For users other
// than root, Tree leaves out upstream's tests that need root.
func Tree(ctx context.Context, t *assemble.Tree) error {
	args, err := AddedArgs(t)
	if err != nil {
		return err
	}
	raceErr := Run(ctx, t.Dir, args...)
	pkgs := Packages(t)
	for _, pkg := range needRoot {
		if i := slices.Index(pkgs, pkg); i >= 0 && os.Getuid() != 0 {
			progress.Printf("%s: all but the added tests are skipped, as upstream's need root", pkg)
			pkgs = slices.Delete(pkgs, i, i+1)
		}
	}
	if err := Run(ctx, t.Dir, append([]string{"-short", "-bench", ".", "-benchtime", "1x"}, pkgs...)...); err != nil {
		return err
	}
	return raceErr
}

// Functions returns the functions of a test file whose names have one of the
// prefixes. Other files have none.
func Functions(file string, prefixes ...string) (names []string, _ error) {
	if !strings.HasSuffix(file, "_test.go") {
		return nil, nil
	}
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, d := range f.Decls {
		if fd, ok := d.(*ast.FuncDecl); ok && fd.Recv == nil && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(fd.Name.Name, p) }) {
			names = append(names, fd.Name.Name)
		}
	}
	return names, nil
}

// Event is a line of the output of go test -json or go tool test2json.
type Event struct {
	Action     string
	Package    string
	ImportPath string // of a package that does not compile
	Test       string
	Elapsed    float64
	Output     string
}

// Read calls f for each event. It treats a line that is not an event, like those of a
// crash, as output.
func Read(r io.Reader, f func(Event)) error {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		if len(line) > 0 {
			var ev Event
			if json.Unmarshal(line, &ev) != nil {
				ev = Event{Action: "output", Output: string(line)}
			}
			f(ev)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.WithStack(err)
		}
	}
}

// Events runs go test in a folder and calls f for each event.
func Events(ctx context.Context, dir string, env, args []string, f func(Event)) error {
	cmd := gomod.Command(ctx, dir, slices.Concat([]string{"test", "-json", "-buildvcs=false"}, args)...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return errors.WithStack(err)
	}
	if err := cmd.Start(); err != nil {
		return errors.WithStack(err)
	}
	readErr := Read(out, f)
	if err := cmd.Wait(); err != nil {
		return errors.Wrapf(err, "go test in %s", dir)
	}
	return readErr
}

// Counts are the outcomes of tests, subtests included.
type Counts struct {
	Passed, Skipped int
	Failed          []string
}

func (c *Counts) String() string {
	if c == nil {
		return "not run"
	}
	return fmt.Sprintf("%d pass, %d fail, %d skip", c.Passed, len(c.Failed), c.Skipped)
}

// Count runs go test and counts the outcomes. It shows the output of failed tests.
func Count(ctx context.Context, dir string, env []string, args ...string) (*Counts, error) {
	progress.Printf("%s: go test %s", filepath.Base(dir), strings.Join(args, " "))
	counter := newCounter(os.Stderr)
	err := Events(ctx, dir, env, args, counter.add)
	if failed := counter.counts.Failed; err != nil && len(failed) > 0 {
		err = errors.Errorf("failed: %s", strings.Join(failed, " "))
	}
	return counter.counts, err
}

// counter counts tests, and writes the output of those that fail to w.
type counter struct {
	w      io.Writer
	counts *Counts
	output map[string]*strings.Builder // of tests that have not ended
}

func newCounter(w io.Writer) *counter {
	return &counter{w: w, counts: &Counts{}, output: map[string]*strings.Builder{}}
}

func (c *counter) add(ev Event) {
	key := ev.Package + ev.ImportPath + " " + ev.Test
	switch ev.Action {
	case "output", "build-output":
		if key == " " { // of no package
			fmt.Fprint(c.w, ev.Output)
			return
		}
		if c.output[key] == nil {
			c.output[key] = &strings.Builder{}
		}
		c.output[key].WriteString(ev.Output)
		return
	case "fail", "build-fail":
		if sb := c.output[key]; sb != nil {
			fmt.Fprint(c.w, sb.String())
		}
		if ev.Test != "" {
			c.counts.Failed = append(c.counts.Failed, ev.Test)
		}
	case "pass":
		if ev.Test != "" {
			c.counts.Passed++
		}
	case "skip":
		if ev.Test != "" {
			c.counts.Skipped++
		}
	default:
		return
	}
	delete(c.output, key)
}
