package testbed

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

//go:embed testdata/scenarios
var scenarioFiles embed.FS

// runTimeout bounds one bake of a scenario.
const runTimeout = 2 * time.Minute

// Scenario is a bake of chained targets that can run repeatedly. Its default target
// passes only if every step saw what its own target offers.
type Scenario struct {
	Name  string // name of the file in testdata/scenarios, without .hcl
	About string

	// NeedsDocker is set if the scenario uses a Docker engine.
	NeedsDocker bool

	file    string   // in testdata/scenarios, instead of Name.hcl
	since   string   // the first buildx that can run it
	secrets []string // variables of the file, with fresh values in each run
	ssh     bool

	// prepare starts the services that the scenario needs, and writes more files.
	prepare func(context.Context, *Project) error
	// run replaces the single bake of a run.
	run func(context.Context, *Project, *Builder, run) error
}

// run has the values that are new in each run of a scenario.
type run struct {
	values map[string]string // of secrets
	env    []string          // with the secrets
	out    string            // folder for results, OUT in the environment
	tag    string            // of pushed images, RUN in the environment
}

// DemoScenarios are the bakes of the demo.
var DemoScenarios = []Scenario{
	{
		Name:    "secret",
		About:   "base with a secret on two platforms, child chained on it",
		secrets: []string{"TOKEN"},
	},
	{
		Name:    "chain",
		About:   "five targets in a chain with a diamond, two secrets",
		secrets: []string{"SOURCE", "CONSOLE"},
	},
	{
		Name:  "ssh",
		About: "base with an optional ssh mount on two platforms, child chained on it",
		ssh:   true,
	},
}

// Timed are the bakes whose times graphload demo compares. Their steps need nothing
// that only one of the targets offers, so they pass with any buildx on any daemon.
var Timed = []Scenario{
	{
		Name:  "chain of five",
		About: "each target does 1 s of work that does not need the target it is linked to",
		file:  "times-chain",
	},
	{
		Name:  "diamond of six",
		About: "the same for one target, four that are linked to it, and one that is linked to the four",
		file:  "times-diamond",
	},
}

// Scenarios are the bakes of the compatibility table: those of the demo and more.
var Scenarios = append(slices.Clip(DemoScenarios), []Scenario{
	{
		Name:    "platforms",
		About:   "base with a secret on three platforms, child chained on it",
		secrets: []string{"TOKEN"},
	},
	{
		Name:    "remote",
		About:   "the chain of five targets from a git repository, base replaced by a cwd:// file",
		secrets: []string{"SOURCE", "CONSOLE"},
		prepare: serveChain,
		run:     bakeRemote,
	},
	{
		Name:    "shared",
		About:   "base with a secret, built alone and as the context of three others",
		secrets: []string{"TOKEN"},
	},
	{
		Name:    "matrix",
		About:   "matrix of targets with a secret, chained on by another matrix",
		secrets: []string{"TOKEN"},
	},
	{
		Name:  "sshrequired",
		About: "base with a required ssh mount on two platforms, child chained on it",
		ssh:   true,
	},
	{
		Name:    "git",
		About:   "base from a private git repository, with GIT_AUTH_TOKEN for base only, child chained on it",
		prepare: serveGit,
	},
	{
		Name:    "registry",
		About:   "base on an image in a private registry, with a secret, child chained on it",
		secrets: []string{"TOKEN"},
		prepare: servePrivateRegistry,
		run:     bakeOnImage,
	},
	{
		Name:    "cache",
		About:   "base with a secret and a cache in a registry, child chained on it, before and after pruning",
		secrets: []string{"TOKEN"},
		prepare: serveRegistry,
		run:     bakeAndPrune,
	},
	{
		Name:    "outputs",
		About:   "image, oci, local, docker and registry outputs, with provenance, of targets chained on base with a secret",
		secrets: []string{"TOKEN"},
		prepare: serveRegistry,
		run:     bakeOutputs,
	},
	{
		Name:    "nocache-base",
		About:   "no-cache on base with a secret, child chained on it",
		file:    "secret",
		secrets: []string{"TOKEN"},
		run:     bakeAgain(map[string]bool{baseStep: false}, "--set", "base.no-cache=true"),
	},
	{
		Name:    "nocache-child",
		About:   "no-cache on the child that is chained on base with a secret",
		file:    "secret",
		secrets: []string{"TOKEN"},
		run:     bakeAgain(map[string]bool{baseStep: true, childStep: false}, "--set", "default.no-cache=true"),
	},
	{
		Name:    "nocache-both",
		About:   "no-cache on base with a secret and on the child chained on it",
		file:    "secret",
		secrets: []string{"TOKEN"},
		run:     bakeAgain(map[string]bool{baseStep: false, childStep: false}, "--set", "base.no-cache=true", "--set", "default.no-cache=true"),
	},
	{
		Name:    "buildcontext",
		About:   "buildx build with --build-context: a private git repository, and an OCI layout that was built with a secret",
		secrets: []string{"TOKEN"},
		prepare: serveGit,
		run:     buildWithContexts,
	},
	{
		Name:        "compose",
		About:       "docker compose build: additional_contexts with service:base, which has a secret, on two platforms",
		NeedsDocker: true,
		since:       "v0.17.0", // which compose requires
		secrets:     []string{"TOKEN"},
		prepare:     startCompose,
		run:         composeBuild,
	},
}...)

// FindScenarios returns the scenarios with the given names, or those of the demo if
// names is empty.
func FindScenarios(names []string) ([]Scenario, error) {
	if len(names) == 0 {
		return DemoScenarios, nil
	}
	for _, l := range EngineScenarios {
		if slices.Contains(names, l.Name) {
			return nil, errors.Errorf("scenario %q needs a Docker engine: use demo --engine", l.Name)
		}
	}
	return find(names, Scenarios)
}

// FindEngineScenarios is FindScenarios for builds on Docker engines.
func FindEngineScenarios(names []string) ([]Scenario, error) {
	if len(names) == 0 {
		names = engineDemo
	}
	return find(names, slices.Concat(Scenarios, EngineScenarios))
}

func find(names []string, scenarios []Scenario) ([]Scenario, error) {
	known := map[string]Scenario{}
	var all []string
	for _, l := range scenarios {
		known[l.Name] = l
		all = append(all, l.Name)
	}
	var out []Scenario
	for _, name := range names {
		l, ok := known[name]
		if !ok {
			return nil, errors.Errorf("no scenario %q, there are %s", name, strings.Join(all, ", "))
		}
		out = append(out, l)
	}
	return out, nil
}

// RunsWith reports whether a version of buildx supports the scenario.
func (l Scenario) RunsWith(version string) bool {
	return l.since == "" || semver.Compare(version, l.since) >= 0
}

// Project is a scenario that is ready to run.
type Project struct {
	Scenario

	dir      string
	env      []string // for all runs
	closers  []io.Closer
	services []string // host and port of services that builds use
	git      *GitServer
	registry *Registry
	compose  string // binary
}

// NewProject writes the files of a scenario to a temporary folder and starts the
// services that it needs. The caller must close the project.
func NewProject(ctx context.Context, l Scenario) (_ *Project, retErr error) {
	dir, err := tempDir("graphload-project-")
	if err != nil {
		return nil, err
	}
	p := &Project{Scenario: l, dir: dir}
	defer func() {
		if retErr != nil {
			p.Close()
		}
	}()
	if p.Scenario.file == "" {
		p.Scenario.file = l.Name
	}
	if err := WriteRootfs(filepath.Join(dir, "rootfs")); err != nil {
		return nil, err
	}
	if l.ssh {
		agent, err := StartSSHAgent(ctx, "testbed")
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, agent)
		p.env = append(p.env, "SSH_AUTH_SOCK="+agent.Socket)
	}
	if l.prepare != nil {
		if err := l.prepare(ctx, p); err != nil {
			return nil, err
		}
	}
	if l.prepare == nil || l.run == nil {
		return p, p.writeFile(p.Scenario.file+".hcl", "docker-bake.hcl")
	}
	return p, nil
}

// path returns the path of a file in the folder of the project.
func (p *Project) path(name string) string {
	return filepath.Join(p.dir, name)
}

// writeFile copies a file of testdata/scenarios into the folder of the project.
func (p *Project) writeFile(src, name string) error {
	dt, err := scenarioFiles.ReadFile("testdata/scenarios/" + src)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.WriteFile(p.path(name), dt, 0o600))
}

// Run bakes the project once.
func (p *Project) Run(ctx context.Context, b *Builder) error {
	ctx, cancel := context.WithTimeoutCause(ctx, runTimeout, errors.Errorf("not done within %s", runTimeout))
	defer cancel()
	if b.forward != nil {
		if err := b.forward(ctx, p.services...); err != nil {
			return err
		}
	}
	// two daemons may bake the project at the same time, and read its folder
	out, err := tempDir("graphload-out-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)
	r := run{values: map[string]string{}, out: out, tag: strings.ToLower(rand.Text())}
	r.env = slices.Concat(p.env, []string{"OUT=" + r.out, "RUN=" + r.tag})
	for _, name := range p.secrets {
		value := rand.Text()
		sum := sha256.Sum256([]byte(value))
		r.values[name] = value
		r.env = append(r.env, name+"="+value, name+"_SHA256="+hex.EncodeToString(sum[:]))
	}
	if p.Scenario.run != nil {
		return p.Scenario.run(ctx, p, b, r)
	}
	return b.Bake(ctx, p.path("docker-bake.hcl"), r.env, "--no-cache")
}

// Close stops the services and removes the files.
func (p *Project) Close() (err error) {
	for _, c := range slices.Backward(p.closers) {
		err = cmp.Or(err, c.Close())
	}
	return cmp.Or(err, errors.WithStack(os.RemoveAll(p.dir)))
}
