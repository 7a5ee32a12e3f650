package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// Suites are the folders of the BuildKit packages that conformance compares.
var Suites = []string{
	"client", "frontend/dockerfile", "frontend/gateway", "frontend", "solver",
	"session", "cache", "control", "source", "worker", "cmd", "util",
}

// suiteOf returns the suite that a package belongs to: the closest folder above it.
func suiteOf(pkg string, suites []string) string {
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		if slices.Contains(suites, dir) {
			return dir
		}
	}
	return ""
}

// harness is the package that starts daemons for tests.
const harness = upstream.Module + "/util/testutil/integration"

// testPackage is a package with tests.
type testPackage struct {
	name  string // below the module
	suite string
	// daemons is set if its tests start buildkitd
	daemons bool
	// harness are the test functions that run tests of the harness
	harness []string
	// changed is set if its test binary has other source code than upstream's.
	// If it is not, and the tests start no daemon, there is nothing to compare.
	changed bool
}

// listPackages returns the packages of the suites that have tests, in the order of the
// suites. tree is the assembled tree.
func listPackages(ctx context.Context, tree *assemble.Tree, suites []string) ([]testPackage, error) {
	changed, changedTests := changedPackages(tree)
	var pkgs []testPackage
	for _, suite := range suites {
		cmd := gomod.Command(ctx, tree.Dir, "list", "-buildvcs=false", "-test", "-json=ImportPath,ForTest,Deps", "./"+suite+"/...")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		dt, err := cmd.Output()
		if err != nil {
			return nil, errors.Wrapf(err, "go list ./%s/...: %s", suite, bytes.TrimSpace(stderr.Bytes()))
		}
		for dec := json.NewDecoder(bytes.NewReader(dt)); ; {
			var p struct {
				ImportPath, ForTest string
				Deps                []string
			}
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, errors.WithStack(err)
			}
			importPath, ok := strings.CutSuffix(p.ImportPath, ".test")
			if !ok || p.ForTest != "" {
				continue
			}
			tp := testPackage{name: strings.TrimPrefix(importPath, upstream.Module+"/"), suite: suite}
			if suiteOf(tp.name, Suites) != suite {
				continue
			}
			_, tp.changed = changedTests[tp.name]
			for _, dep := range p.Deps {
				dep, _, _ = strings.Cut(dep, " ") // " [for.test]"
				if dep == harness {
					tp.daemons = true
				}
				if _, ok := changed[strings.TrimPrefix(dep, upstream.Module+"/")]; ok {
					tp.changed = true
				}
			}
			if tp.daemons {
				if tp.harness, err = harnessTests(tp.dir(tree)); err != nil {
					return nil, err
				}
			}
			pkgs = append(pkgs, tp)
		}
	}
	return pkgs, nil
}

// harnessTests returns the test functions in a folder that call the harness, directly
// or through another function of the tests.
func harnessTests(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	calls := map[string][]string{}  // functions that a function names
	starts := map[string]struct{}{} // functions that call the harness
	var reaches func(fn string, seen map[string]struct{}) bool
	reaches = func(fn string, seen map[string]struct{}) bool {
		if _, ok := seen[fn]; ok {
			return false
		}
		seen[fn] = struct{}{}
		if _, ok := starts[fn]; ok {
			return true
		}
		return slices.ContainsFunc(calls[fn], func(callee string) bool { return reaches(callee, seen) })
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		pkg := ""
		for _, imp := range f.Imports {
			if imp.Path.Value == strconv.Quote(harness) {
				pkg = path.Base(harness)
				if imp.Name != nil {
					pkg = imp.Name.Name
				}
			}
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Body == nil {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch fun := call.Fun.(type) {
				case *ast.Ident:
					calls[fn.Name.Name] = append(calls[fn.Name.Name], fun.Name)
				case *ast.SelectorExpr:
					if x, ok := fun.X.(*ast.Ident); ok && pkg != "" && x.Name == pkg && fun.Sel.Name == "Run" {
						starts[fn.Name.Name] = struct{}{}
					}
				}
				return true
			})
			if _, ok := calls[fn.Name.Name]; !ok {
				calls[fn.Name.Name] = nil
			}
		}
	}
	var tests []string
	for fn := range calls {
		if strings.HasPrefix(fn, "Test") && reaches(fn, map[string]struct{}{}) {
			tests = append(tests, fn)
		}
	}
	slices.Sort(tests)
	return tests, nil
}

// changedPackages returns the packages whose source code differs from upstream's, and
// those whose tests differ.
func changedPackages(tree *assemble.Tree) (changed, tests map[string]struct{}) {
	changed, tests = map[string]struct{}{}, map[string]struct{}{}
	files := slices.Clone(tree.Added)
	for name := range tree.Changed {
		files = append(files, name)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			tests[path.Dir(name)] = struct{}{}
		} else {
			changed[path.Dir(name)] = struct{}{}
		}
	}
	return changed, tests
}

// compile builds the test binary of a package in a tree. It writes none if the tree
// has no tests of the package.
func (p testPackage) compile(ctx context.Context, tree *assemble.Tree, out string) error {
	if _, err := os.Stat(p.dir(tree)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	dt, err := gomod.Command(ctx, tree.Dir, "test", "-c", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./"+p.name).CombinedOutput()
	return errors.Wrapf(err, "failed to compile the tests of %s in %s: %s", p.name, tree.Dir, bytes.TrimSpace(dt))
}

// dir returns the folder in which the tests of the package run.
func (p testPackage) dir(tree *assemble.Tree) string {
	return filepath.Join(tree.Dir, filepath.FromSlash(p.name))
}

// Select returns the suites with the given names, in order, or all if names is empty.
// Names can be patterns of the go command, like ./solver/...
func Select(names []string) ([]string, error) {
	if len(names) == 0 {
		return Suites, nil
	}
	var out []string
	for _, name := range names {
		name = strings.Trim(strings.TrimSuffix(strings.TrimPrefix(name, "./"), "..."), "/")
		if !slices.Contains(Suites, name) {
			return nil, errors.Errorf("no suite %q, there are: %s", name, strings.Join(Suites, ", "))
		}
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return slices.Index(Suites, a) - slices.Index(Suites, b) })
	return slices.Compact(out), nil
}
