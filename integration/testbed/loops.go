package testbed

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// Loop is a bake that chains targets, made to be run again and again. Its
// steps check what they were given, so it passes only if every step saw the
// secrets and the agent of the target it belongs to.
type Loop struct {
	Name  string
	About string
	files map[string]string
	ssh   bool
}

const fromScratch = `FROM scratch
COPY busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
`

// bakeHeader gives all targets of a loop what they have in common.
const bakeHeader = `variable "CONTEXT" { default = "." }
target "_common" {
  context = CONTEXT
  output = ["type=cacheonly"]
}
target "_platforms" {
  platforms = ["linux/amd64", "linux/arm64"]
}
`

// Loops are the bakes of the demo.
var Loops = []Loop{
	{
		Name:  "secret",
		About: "base with a secret on two platforms, child chained on it",
		files: map[string]string{
			"token": "base-token",
			"base.Dockerfile": fromScratch + `
RUN --mount=type=secret,id=token,required=true test "$(/bin/busybox cat /run/secrets/token)" = base-token
`,
			"child.Dockerfile": `FROM base
RUN ["/bin/busybox", "true"]
`,
			"docker-bake.hcl": bakeHeader + `
group "default" { targets = ["base", "child"] }
target "base" {
  inherits = ["_common", "_platforms"]
  dockerfile = "base.Dockerfile"
  secret = ["id=token,src=${CONTEXT}/token"]
}
target "child" {
  inherits = ["_common", "_platforms"]
  dockerfile = "child.Dockerfile"
  contexts = { base = "target:base" }
}
`,
		},
	},
	{
		Name:  "chain",
		About: "five targets in a chain with a diamond, two secrets",
		files: map[string]string{
			"one": "first-token",
			"two": "second-token",
			"a.Dockerfile": fromScratch + `
RUN --mount=type=secret,id=one,required=true test "$(/bin/busybox cat /run/secrets/one)" = first-token && echo a > /a
`,
			"b.Dockerfile": `FROM a
RUN --mount=type=secret,id=two,required=true test "$(/bin/busybox cat /run/secrets/two)" = second-token && echo b > /b
`,
			"c.Dockerfile": `FROM a
RUN echo c > /c
`,
			"d.Dockerfile": `FROM b
COPY --from=c /c /c
RUN test -f /a && test -f /b && test -f /c
`,
			"e.Dockerfile": `FROM d
RUN echo e > /e
`,
			"docker-bake.hcl": bakeHeader + `
group "default" { targets = ["a", "b", "c", "d", "e"] }
target "a" {
  inherits = ["_common"]
  dockerfile = "a.Dockerfile"
  secret = ["id=one,src=${CONTEXT}/one"]
}
target "b" {
  inherits = ["_common"]
  dockerfile = "b.Dockerfile"
  contexts = { a = "target:a" }
  secret = ["id=two,src=${CONTEXT}/two"]
}
target "c" {
  inherits = ["_common"]
  dockerfile = "c.Dockerfile"
  contexts = { a = "target:a" }
}
target "d" {
  inherits = ["_common"]
  dockerfile = "d.Dockerfile"
  contexts = { b = "target:b", c = "target:c" }
}
target "e" {
  inherits = ["_common"]
  dockerfile = "e.Dockerfile"
  contexts = { d = "target:d" }
}
`,
		},
	},
	{
		Name:  "ssh",
		About: "base with an optional ssh mount on two platforms, child chained on it",
		ssh:   true,
		files: map[string]string{
			"base.Dockerfile": fromScratch + `
RUN --mount=type=ssh test -S "$SSH_AUTH_SOCK"
`,
			"child.Dockerfile": `FROM base
RUN ["/bin/busybox", "true"]
`,
			"docker-bake.hcl": bakeHeader + `
group "default" { targets = ["base", "child"] }
target "base" {
  inherits = ["_common", "_platforms"]
  dockerfile = "base.Dockerfile"
  ssh = ["default"]
}
target "child" {
  inherits = ["_common", "_platforms"]
  dockerfile = "child.Dockerfile"
  contexts = { base = "target:base" }
}
`,
		},
	},
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
	for name, content := range l.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	if err := copyBusybox(dir); err != nil {
		return nil, err
	}
	if l.ssh {
		if p.agent, err = StartSSHAgent(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Run bakes the project once, without cache.
func (p *Project) Run(ctx context.Context, b *Builder) error {
	args := []string{"--no-cache"}
	var env []string
	if p.agent != nil {
		args = append(args, "--allow", "ssh")
		env = append(env, "SSH_AUTH_SOCK="+p.agent.Socket)
	}
	return b.Bake(ctx, p.dir, env, args...)
}

// Close removes the project.
func (p *Project) Close() error {
	if p.agent != nil {
		if err := p.agent.Close(); err != nil {
			return err
		}
	}
	return errors.WithStack(os.RemoveAll(p.dir))
}

// copyBusybox puts the static busybox of the machine into a build context.
func copyBusybox(dir string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return errors.Wrap(err, "install busybox-static")
	}
	in, err := os.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return errors.WithStack(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return errors.WithStack(err)
	}
	return errors.WithStack(out.Close())
}

// FindLoops returns the loops of the given names, all of them for none.
func FindLoops(names []string) ([]Loop, error) {
	if len(names) == 0 {
		return Loops, nil
	}
	var out []Loop
	for _, name := range names {
		found := false
		for _, l := range Loops {
			if l.Name == name {
				out, found = append(out, l), true
			}
		}
		if !found {
			var known []string
			for _, l := range Loops {
				known = append(known, l.Name)
			}
			return nil, errors.Errorf("no loop %q, there are %s", name, strings.Join(known, ", "))
		}
	}
	return out, nil
}
