package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"golang.org/x/tools/benchmark/parse"
)

// packageBench is a Go benchmark of a package of BuildKit. Its files are in this
// repository and use nothing of the change, so that an overlay can put them into
// upstream's tree.
type packageBench struct {
	pkg   string
	files []string
	time  string // of -test.benchtime, "" for the default
}

// run measures the time of one operation of the benchmark with the given name.
func (p packageBench) run(name string) runFunc {
	return p.compare(name, name)
}

// compare is like run, with one benchmark for upstream and another for graphload.
func (p packageBench) compare(upstream, graphload string) runFunc {
	return func(ctx context.Context, t *Target) (float64, error) {
		bin, err := p.binary(ctx, t)
		if err != nil {
			return 0, err
		}
		name := upstream
		if t.Daemon.Flavor == testbed.Graphload {
			name = graphload
		}
		cmd := exec.CommandContext(ctx, bin, "-test.run", "^$", "-test.bench", pattern(name), "-test.benchtime", cmp.Or(p.time, "300ms"))
		cmd.Dir = filepath.Join(t.Tree, p.pkg)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, errors.Wrapf(err, "%s: %s", name, out)
		}
		return nanoseconds(name, out)
	}
}

// pattern returns the value of -test.bench that selects one benchmark.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// nanoseconds returns the time of one operation of the only benchmark in out.
func nanoseconds(name string, out []byte) (float64, error) {
	set, err := parse.ParseSet(bytes.NewReader(out))
	if err != nil {
		return 0, errors.WithStack(err)
	}
	if len(set) != 1 {
		return 0, errors.Errorf("%s: expected one benchmark, not %d: %s", name, len(set), out)
	}
	for _, results := range set {
		if len(results) == 1 && results[0].Measured&parse.NsPerOp != 0 {
			return results[0].NsPerOp, nil
		}
	}
	return 0, errors.Errorf("%s: no time of an operation in %q", name, out)
}

// binary builds the tests of the package once for a target.
func (p packageBench) binary(ctx context.Context, t *Target) (string, error) {
	if bin, ok := t.binaries[p.pkg]; ok {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "graphload-bench-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	t.temp = append(t.temp, dir)
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	if t.Daemon.Flavor == testbed.Upstream {
		for _, file := range p.files {
			overlay.Replace[filepath.Join(t.Tree, p.pkg, file)] = filepath.Join(t.Root, p.pkg, file)
		}
	}
	dt, err := json.Marshal(overlay)
	if err != nil {
		return "", errors.WithStack(err)
	}
	file, bin := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "bench.test")
	if err := os.WriteFile(file, dt, 0o600); err != nil {
		return "", errors.WithStack(err)
	}
	cmd := gomod.Command(ctx, t.Tree, "test", "-c", "-buildvcs=false", "-overlay", file, "-o", bin, p.pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Wrapf(err, "benchmarks of %s on the %s tree: %s", p.pkg, t.Daemon.Flavor, out)
	}
	if t.binaries == nil {
		t.binaries = map[string]string{}
	}
	t.binaries[p.pkg] = bin
	return bin, nil
}
