package testbed

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// dockerVersion is the release of the docker command that builds on engines.
const dockerVersion = "v29.8.2"

// DockerBinary returns the path of an unmodified docker command. The first call
// builds it into the cache folder of the user.
func DockerBinary(ctx context.Context) (string, error) {
	return gomod.Tool{
		Module:  gomod.Module{Path: "github.com/docker/cli", Version: dockerVersion + "+incompatible", Sum: "h1:2zgdFuoFst2T80oS42vhKGxkd0JRo305eIEKTsxR7pQ="},
		Pkg:     "./cmd/docker",
		LDFlags: "-X github.com/docker/cli/cli/version.Version=" + dockerVersion[1:],
		Mod:     "vendor",
	}.Install(ctx)
}

// Docker runs the docker command with buildx and compose as its plugins, in the
// folder dir and with env added to its environment. It returns the output of the
// command.
func (b *Builder) Docker(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	if b.forward == nil {
		return "", errors.New("the docker command needs a Docker engine")
	}
	docker, err := DockerBinary(ctx)
	if err != nil {
		return "", err
	}
	compose, err := ComposeBinary(ctx)
	if err != nil {
		return "", err
	}
	plugins := filepath.Join(b.Config, "cli-plugins")
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		return "", errors.WithStack(err)
	}
	for name, path := range map[string]string{"docker-buildx": b.buildx, "docker-compose": compose} {
		if err := os.Symlink(path, filepath.Join(plugins, name)); err != nil && !os.IsExist(err) {
			return "", errors.WithStack(err)
		}
	}
	cmd := command(ctx, docker, args...)
	cmd.Dir = dir
	cmd.Env = slices.Concat(b.Command(ctx).Env, env)
	dt, err := output(cmd)
	return string(dt), err
}

// engineDemo names the scenarios of the demo on engines.
var engineDemo = []string{"secret", "chain", "ssh", "docker-compose"}

// EngineScenarios are builds with the docker command. They need an engine.
var EngineScenarios = []Scenario{
	{
		Name:    "docker-build",
		About:   "docker build with --build-context: a private git repository, and an image that was built with a secret",
		secrets: []string{"TOKEN"},
		prepare: serveGit,
		run:     dockerBuild,
	},
	{
		Name:    "docker-compose",
		About:   "docker compose build: additional_contexts with service:base, which has a secret, on two platforms",
		since:   "v0.17.0", // which compose requires
		secrets: []string{"TOKEN"},
		prepare: func(_ context.Context, p *Project) error { return p.writeFile("compose.yaml", "compose.yaml") },
		run: func(ctx context.Context, p *Project, b *Builder, r run) error {
			_, err := b.Docker(ctx, p.dir, r.env, "compose", "--progress", "plain", "build", "--no-cache")
			return err
		},
	},
}

// dockerBuild builds an image, and one with that image and a private repository as
// contexts.
func dockerBuild(ctx context.Context, p *Project, b *Builder, r run) error {
	for _, name := range []string{"base.Dockerfile", "child.Dockerfile"} {
		if err := p.writeFile("buildcontext/"+name, name); err != nil {
			return err
		}
	}
	build := func(dockerfile string, args ...string) error {
		_, err := b.Docker(ctx, p.dir, r.env, append([]string{"build", "--progress", "plain", "--no-cache", "--file", dockerfile, "."}, args...)...)
		return err
	}
	base := "base:" + r.tag
	if err := build("base.Dockerfile", "--secret", "id=token,env=TOKEN", "--tag", base); err != nil {
		return err
	}
	return build("child.Dockerfile", "--secret", "id=GIT_AUTH_TOKEN,env=GIT_TOKEN", "--tag", "child:"+r.tag,
		"--build-context", "repo="+p.git.URL+"#main", "--build-context", "base=docker-image://"+base, "--build-arg", "TOKEN_SHA256")
}
