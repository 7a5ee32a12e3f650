package testbed

import (
	"context"
	"crypto/rand"
	"embed"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"
)

//go:embed testdata/loops/*.hcl
var loopFiles embed.FS

// runTimeout is how long one bake of a loop may take.
const runTimeout = 2 * time.Minute

// Loop is a bake that chains targets, made to be run again and again. Its
// default target passes only if every step saw what its own target offers.
type Loop struct {
	Name  string // of its file in testdata/loops, without .hcl
	About string

	secrets []string // variables of the file, with fresh values in each run
	ssh     bool
}

// Loops are the bakes of the demo.
var Loops = []Loop{
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

// Matrix are the bakes of the compatibility table: those of the demo and more.
var Matrix = append(slices.Clip(Loops), []Loop{
	{
		Name:    "platforms",
		About:   "base with a secret on three platforms, child chained on it",
		secrets: []string{"TOKEN"},
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
}...)

// FindLoops returns the loops of the given names, all of them for none.
func FindLoops(names []string) ([]Loop, error) {
	if len(names) == 0 {
		return Loops, nil
	}
	known := map[string]Loop{}
	var all []string
	for _, l := range Loops {
		known[l.Name] = l
		all = append(all, l.Name)
	}
	var out []Loop
	for _, name := range names {
		l, ok := known[name]
		if !ok {
			return nil, errors.Errorf("no loop %q, there are %s", name, strings.Join(all, ", "))
		}
		out = append(out, l)
	}
	return out, nil
}

// Project is a loop that is ready to run.
type Project struct {
	Loop
	dir   string
	agent *SSHAgent
}

// NewProject writes the files of a loop to a temporary folder and starts what
// it needs. It must be closed.
func NewProject(ctx context.Context, l Loop) (_ *Project, retErr error) {
	dir, err := os.MkdirTemp("", "graphload-project-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	p := &Project{Loop: l, dir: dir}
	defer func() {
		if retErr != nil {
			p.Close()
		}
	}()
	dt, err := loopFiles.ReadFile("testdata/loops/" + l.Name + ".hcl")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if err := os.WriteFile(p.file(), dt, 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	if err := WriteRootfs(filepath.Join(dir, "rootfs")); err != nil {
		return nil, err
	}
	if l.ssh {
		if p.agent, err = StartSSHAgent(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Project) file() string {
	return filepath.Join(p.dir, "docker-bake.hcl")
}

// Run bakes the project once, without cache.
func (p *Project) Run(ctx context.Context, b *Builder) error {
	ctx, cancel := context.WithTimeoutCause(ctx, runTimeout, errors.Errorf("not done within %s", runTimeout))
	defer cancel()
	var env []string
	for _, name := range p.secrets {
		env = append(env, name+"="+rand.Text())
	}
	if p.agent != nil {
		env = append(env, "SSH_AUTH_SOCK="+p.agent.Socket)
	}
	return b.Bake(ctx, p.file(), env, "--no-cache")
}

// Close stops what was started and removes the files.
func (p *Project) Close() error {
	var err error
	if p.agent != nil {
		err = p.agent.Close()
	}
	if rmErr := os.RemoveAll(p.dir); err == nil {
		err = errors.WithStack(rmErr)
	}
	return err
}
