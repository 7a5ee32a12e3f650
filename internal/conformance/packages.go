package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// Suites are the packages of BuildKit that are compared, by the folder they are
// in.
var Suites = []string{
	"client", "frontend/dockerfile", "frontend/gateway", "solver", "session",
	"cache", "control", "source", "worker", "cmd", "util",
}

// harness is the package that starts the daemons of the tests that need some.
const harness = upstream.Module + "/util/testutil/integration"

// testPackage is a package with tests.
type testPackage struct {
	name  string // below the module
	suite string
	// daemons tells that its tests start buildkitd
	daemons bool
	// changed tells that its test binary has other source code than upstream's.
	// If not, and it starts no daemon, there is nothing to compare.
	changed bool
}

// listPackages returns the packages with tests of the suites in the order of
// the suites. tree is the assembled one.
func listPackages(ctx context.Context, tree *assemble.Tree, suites []string) ([]testPackage, error) {
	changed, changedTests := changedPackages(tree)
	var pkgs []testPackage
	for _, suite := range suites {
		args := []string{"list", "-buildvcs=false", "-test", "-json=ImportPath,ForTest,Deps"}
		cmd := exec.CommandContext(ctx, "go", append(args, "./"+suite+"/...")...)
		cmd.Dir = tree.Dir
		cmd.Env = append(os.Environ(), "GOWORK=off")
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
			pkgs = append(pkgs, tp)
		}
	}
	return pkgs, nil
}

// changedPackages returns the packages with other source code than upstream's,
// and those with other tests.
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

// compile builds the test binary of a package in a tree. There is none if the
// tree has no tests of the package.
func (p testPackage) compile(ctx context.Context, tree *assemble.Tree, out string) error {
	if _, err := os.Stat(p.dir(tree)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-buildvcs=false", "-o", out, "./"+p.name)
	cmd.Dir = tree.Dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var buf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buf, &buf
	return errors.Wrapf(cmd.Run(), "failed to compile the tests of %s in %s: %s", p.name, tree.Dir, bytes.TrimSpace(buf.Bytes()))
}

// dir is where the tests of the package run.
func (p testPackage) dir(tree *assemble.Tree) string {
	return filepath.Join(tree.Dir, filepath.FromSlash(p.name))
}

// Select returns the suites of these names in order, or all when there is none.
func Select(names []string) ([]string, error) {
	if len(names) == 0 {
		return Suites, nil
	}
	var out []string
	for _, name := range names {
		name = strings.Trim(strings.TrimPrefix(name, "./"), "/")
		if !slices.Contains(Suites, name) {
			return nil, errors.Errorf("no suite %q, there are: %s", name, strings.Join(Suites, ", "))
		}
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return slices.Index(Suites, a) - slices.Index(Suites, b) })
	return slices.Compact(out), nil
}
