package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
)

// EngineSuites are the packages of the Docker engine with tests of builds. Packages in
// integration need a running engine.
var EngineSuites = []string{"daemon/internal/builder-next", "integration/build"}

// EngineOptions select the tests of a run with Docker engines.
type EngineOptions struct {
	Root     string // of the repository
	Run      string // -test.run
	Retries  int
	Timeout  time.Duration // of the tests of one package
	Output   string        // folder of the reports
	Progress func(format string, args ...any)
}

// RunEngine runs the engine's own tests of builds with upstream's engine and with ours,
// and writes the reports. There is no list of tests that need a network: the results of
// upstream's engine decide.
func RunEngine(ctx context.Context, opt EngineOptions) (_ *Report, retErr error) {
	dir, err := os.MkdirTemp("", "conf-") // short, for the sockets in it
	if err != nil {
		return nil, errors.WithStack(err)
	}
	r := &runner{dir: dir, Options: Options{
		Run: opt.Run, Retries: opt.Retries, Timeout: opt.Timeout, Output: opt.Output, Progress: opt.Progress, Suites: EngineSuites,
	}}
	defer func() {
		if err := clean(dir); retErr == nil {
			retErr = err
		}
	}()
	for _, sub := range []string{filepath.Join(opt.Output, "logs"), filepath.Join(dir, "daemons"), r.races(Upstream), r.races(Graphload)} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	var images bytes.Buffer
	if err := writeEngineImages(&images); err != nil {
		return nil, err
	}
	report := &Report{Version: engine.DefaultVersion, Started: time.Now().UTC().Truncate(time.Second), Selection: strings.Join(EngineSuites, ", ")}
	if opt.Run != "" {
		report.Selection += "; tests " + opt.Run
	}
	if err := os.Chmod(dir, 0o711); err != nil { // users of user namespaces need access to their folders
		return nil, errors.WithStack(err)
	}
	for flavor, source := range []func(context.Context, string, string) (*engine.Source, error){engine.Unmodified, engine.Prepare} {
		src, err := source(ctx, opt.Root, engine.DefaultVersion)
		if err != nil {
			return nil, err
		}
		e, err := testbed.StartEngine(ctx, testbed.EngineOptions{Flavor: testbed.Flavors[flavor]})
		if err != nil {
			return nil, err
		}
		defer testbed.CloseLast(e, &retErr)
		if err := e.ShareContainerd(ctx); err != nil {
			return nil, err
		}
		if err := e.Load(ctx, bytes.NewReader(images.Bytes())); err != nil {
			return nil, err
		}
		r.Trees[flavor] = &assemble.Tree{Dir: src.Dir}
		r.prefix[flavor] = e.Enter()
		r.env[flavor] = []string{"DOCKER_HOST=" + e.Host, e.Path(), "DEST=" + filepath.Join(dir, "daemons")}
		report.Daemons[flavor] = "dockerd " + src.DockerVersion()
	}
	for _, suite := range EngineSuites {
		pkgs, err := enginePackages(ctx, r.Trees[Graphload].Dir, suite)
		if err != nil {
			return nil, err
		}
		for _, p := range pkgs {
			res, err := r.compare(ctx, p)
			if err != nil {
				return nil, errors.Wrap(err, p.name)
			}
			report.add(res)
		}
		s := report.suite(suite)
		opt.Progress("%s: upstream %s, graphload %s", suite, s.Upstream, s.Graphload)
		if s.Upstream.Pass == 0 && s.Upstream.Fail > 0 {
			report.Void = append(report.Void, fmt.Sprintf("%s: no test passes with upstream's engine: that they fail with ours too says nothing", suite))
		}
		if err := report.Write(opt.Output); err != nil {
			return nil, err
		}
	}
	if len(report.Tests) == 0 {
		report.Void = append(report.Void, "no test was run")
	}
	report.Complete = true
	return report, report.Write(opt.Output)
}

// enginePackages returns the packages of a suite that have tests. Both engines run all
// of them, because all depend on BuildKit.
func enginePackages(ctx context.Context, dir, suite string) ([]testPackage, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-buildvcs=false", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", "./"+suite+"/...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, err := cmd.Output()
	if err != nil {
		return nil, errors.Wrapf(err, "go list ./%s/...: %s", suite, bytes.TrimSpace(stderr.Bytes()))
	}
	var pkgs []testPackage
	for _, path := range strings.Fields(string(dt)) {
		pkgs = append(pkgs, testPackage{name: strings.TrimPrefix(path, engine.Module+"/"), suite: suite, changed: true, daemons: true})
	}
	return pkgs, nil
}

// engineImages are the images that the engine must have so that its tests do not pull
// them, with their architecture.
var engineImages = map[string]string{
	"busybox:latest":     "amd64",
	"busybox:glibc":      "amd64",
	"hello-world:frozen": "amd64",
	"debian:trixie-slim": "amd64",
	"hello-world:amd64":  "amd64",
	"hello-world:arm64":  "arm64",
}

// writeEngineImages writes engineImages as an archive for docker load.
func writeEngineImages(w io.Writer) error {
	bb, err := findBusybox()
	if err != nil {
		return err
	}
	images := map[name.Reference]v1.Image{}
	for ref, arch := range engineImages {
		tag, err := name.NewTag(ref)
		if err != nil {
			return errors.WithStack(err)
		}
		img, err := busyboxImage(bb, ref)
		if err != nil {
			return err
		}
		cf, err := img.ConfigFile()
		if err != nil {
			return errors.WithStack(err)
		}
		cf = cf.DeepCopy()
		cf.Architecture = arch
		if images[tag], err = mutate.ConfigFile(img, cf); err != nil {
			return errors.WithStack(err)
		}
	}
	return errors.WithStack(tarball.MultiRefWrite(images, w))
}
