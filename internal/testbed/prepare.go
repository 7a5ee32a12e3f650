package testbed

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// serveChain serves chain.hcl from a git repository. The local file override.hcl
// replaces its target base, see testdata/scenarios/remote.hcl.
func serveChain(ctx context.Context, p *Project) error {
	chain, err := scenarioFiles.ReadFile("testdata/scenarios/chain.hcl")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := p.serveGit(ctx, map[string]string{"docker-bake.hcl": string(chain), "marker": "from git\n"}, nil); err != nil {
		return err
	}
	return p.writeFile("remote.hcl", "override.hcl")
}

// bakeRemote bakes the file in the repository together with a local one.
func bakeRemote(ctx context.Context, p *Project, b *Builder, r run) error {
	_, err := b.Output(ctx, p.dir, r.env, "bake", "--progress", "plain", "--no-cache",
		"--file", "docker-bake.hcl", "--file", "cwd://override.hcl", p.git.URL+"#main")
	return err
}

// serveGit serves a repository with a file to clients that have a token.
func serveGit(ctx context.Context, p *Project) error {
	token := rand.Text()
	if err := p.serveGit(ctx, map[string]string{"file": "content\n"}, Users{token: "user"}); err != nil {
		return err
	}
	p.env = append(p.env, "GIT_URL="+p.git.URL+"#main", "GIT_TOKEN="+token)
	return nil
}

func (p *Project) serveGit(ctx context.Context, files map[string]string, users Users) (err error) {
	if p.git, err = StartGitServer(ctx, files, users); err != nil {
		return err
	}
	p.closers = append(p.closers, p.git)
	u, err := url.Parse(p.git.URL)
	if err == nil {
		p.services = append(p.services, u.Host)
	}
	return errors.WithStack(err)
}

// serveRegistry starts an empty registry that is open to all.
func serveRegistry(ctx context.Context, p *Project) error {
	return p.serveRegistry(ctx, RegistryOptions{})
}

// servePrivateRegistry starts an empty registry that requires a login.
func servePrivateRegistry(ctx context.Context, p *Project) error {
	return p.serveRegistry(ctx, RegistryOptions{Users: map[string]string{"user": rand.Text()}})
}

func (p *Project) serveRegistry(ctx context.Context, opt RegistryOptions) (err error) {
	if p.registry, err = StartRegistry(ctx, opt); err != nil {
		return err
	}
	p.closers = append(p.closers, p.registry)
	p.services = append(p.services, p.registry.Host)
	p.env = append(p.env, "REGISTRY="+p.registry.Host)
	return p.writeFile(p.file+".hcl", "docker-bake.hcl")
}

// bakeOnImage pushes an image and bakes targets that start from it.
func bakeOnImage(ctx context.Context, p *Project, b *Builder, r run) error {
	if err := p.registry.Login(b.Config, "user"); err != nil {
		return err
	}
	file := p.path("docker-bake.hcl")
	if err := b.Bake(ctx, file, r.env, "image"); err != nil {
		return err
	}
	return b.Bake(ctx, file, r.env, "--no-cache", "--pull")
}

// bakeAndPrune bakes, prunes the cache of the daemon, and bakes again with the same
// secret. The step of base must come from the cache in the registry.
func bakeAndPrune(ctx context.Context, p *Project, b *Builder, r run) error {
	file := p.path("docker-bake.hcl")
	if err := b.Bake(ctx, file, r.env); err != nil {
		return err
	}
	if _, err := b.Output(ctx, p.dir, nil, "prune", "--all", "--force"); err != nil {
		return err
	}
	log, err := b.BakeLog(ctx, file, r.env)
	if err != nil {
		return err
	}
	if strings.Contains(log, "/run/secrets/token: OK") {
		return errors.Errorf("the step of base ran again: %s", log)
	}
	return nil
}

// Parts of the names of the steps of base and of its child, in the files that have
// these targets.
const (
	baseStep  = "sha256sum -c /token.sha256"
	childStep = "RUN cp /token.sha256 /child"
)

// bakeAgain bakes, and bakes again with other arguments and the same secret. The
// second time, it expects each step of cached to be in the cache or not.
func bakeAgain(cached map[string]bool, args ...string) func(context.Context, *Project, *Builder, run) error {
	return func(ctx context.Context, p *Project, b *Builder, r run) error {
		file := p.path("docker-bake.hcl")
		if err := b.Bake(ctx, file, r.env); err != nil {
			return err
		}
		log, err := b.BakeLog(ctx, file, r.env, args...)
		if err != nil {
			return err
		}
		return expectSteps(log, cached)
	}
}

// stepLine matches a line of plain progress: the number of a vertex and a message.
var stepLine = regexp.MustCompile(`(?m)^(#\d+) (.*)$`)

// expectSteps checks in plain progress whether the steps with these names were in
// the cache or ran.
func expectSteps(log string, cached map[string]bool) error {
	names, hits := map[string]string{}, map[string]bool{}
	for _, m := range stepLine.FindAllStringSubmatch(log, -1) {
		if _, ok := names[m[1]]; !ok {
			names[m[1]] = m[2]
		}
		if m[2] == "CACHED" {
			hits[m[1]] = true
		}
	}
	for step, want := range cached {
		found := false
		for number, name := range names {
			if !strings.Contains(name, step) {
				continue
			}
			found = true
			if hits[number] != want {
				return errors.Errorf("%s %s: cached is %t: %s", number, name, hits[number], log)
			}
		}
		if !found {
			return errors.Errorf("no step with %q: %s", step, log)
		}
	}
	return nil
}

// bakeOutputs bakes targets with an output of every kind and looks at them.
func bakeOutputs(ctx context.Context, p *Project, b *Builder, r run) error {
	if err := b.Bake(ctx, p.path("docker-bake.hcl"), r.env, "--no-cache"); err != nil {
		return err
	}
	const predicate = "https://slsa.dev/provenance/"
	for _, f := range []struct {
		name, contains string
	}{
		{"local/linux_amd64/child", "/run/secrets/token"},
		{"local/linux_arm64/child", "/run/secrets/token"},
		{"local/linux_amd64/provenance.json", predicate},
		{"local/linux_amd64/provenance.json", `"llbDefinition"`}, // of mode=max
		{"oci.tar", predicate},
		{"docker.tar", "manifest.json"},
	} {
		dt, err := os.ReadFile(filepath.Join(r.out, f.name))
		if err != nil {
			return errors.WithStack(err)
		}
		if !bytes.Contains(dt, []byte(f.contains)) {
			return errors.Errorf("%s does not contain %s", f.name, f.contains)
		}
		if bytes.Contains(dt, []byte(r.values["TOKEN"])) {
			return errors.Errorf("%s contains the secret", f.name)
		}
	}
	for _, image := range []string{"image", "registry"} {
		dt, err := p.registry.manifest(ctx, image, r.tag)
		if err != nil {
			return err
		}
		if !bytes.Contains(dt, []byte("attestation-manifest")) {
			return errors.Errorf("%s has no attestations: %s", image, dt)
		}
	}
	return nil
}

// manifest returns the manifest or index of an image in a registry that is open to
// all.
func (r *Registry) manifest(ctx context.Context, image, tag string) ([]byte, error) {
	url := "http://" + r.Host + "/v2/" + image + "/manifests/" + tag
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.index.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.Errorf("%s: %s", url, resp.Status)
	}
	return dt, errors.WithStack(err)
}

// buildWithContexts builds an OCI layout, and an image with the layout and a
// private repository as contexts.
func buildWithContexts(ctx context.Context, p *Project, b *Builder, r run) error {
	for _, name := range []string{"base.Dockerfile", "child.Dockerfile"} {
		if err := p.writeFile("buildcontext/"+name, name); err != nil {
			return err
		}
	}
	layout := filepath.Join(r.out, "layout")
	build := func(dockerfile string, args ...string) error {
		_, err := b.Output(ctx, p.dir, r.env, append([]string{"build", "--progress", "plain", "--no-cache", "--file", dockerfile, "."}, args...)...)
		return err
	}
	if err := build("base.Dockerfile", "--secret", "id=token,env=TOKEN", "--output", "type=oci,tar=false,name=base:latest,dest="+layout); err != nil {
		return err
	}
	return build("child.Dockerfile", "--secret", "id=GIT_AUTH_TOKEN,env=GIT_TOKEN", "--output", "type=cacheonly",
		"--build-context", "repo="+p.git.URL+"#main", "--build-context", "base=oci-layout://"+layout+":latest", "--build-arg", "TOKEN_SHA256")
}

const composeVersion = "v5.3.1"

// ComposeBinary returns the path of an unmodified docker compose. The first call
// builds it into the cache folder of the user.
func ComposeBinary(ctx context.Context) (string, error) {
	return gomod.Tool{
		Module:  gomod.Module{Path: "github.com/docker/compose/v5", Version: composeVersion, Sum: "h1:rZiPwrtg1dBmVGcHiioLtzCS+TcvZq81zl0zs2BwtbE="},
		Pkg:     "./cmd",
		Name:    "docker-compose",
		LDFlags: "-X github.com/docker/compose/v5/internal.Version=" + composeVersion,
	}.Install(ctx)
}

// startCompose starts a Docker engine, to which compose connects.
func startCompose(ctx context.Context, p *Project) (err error) {
	if p.compose, err = ComposeBinary(ctx); err != nil {
		return err
	}
	if err := FetchDocker(ctx); err != nil {
		return err
	}
	engine, err := StartDocker(ctx)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, engine)
	p.env = append(p.env, "DOCKER_HOST="+engine.Host)
	return p.writeFile("compose.yaml", "compose.yaml")
}

// composeBuild builds with compose, whose plugin buildx uses the builder b.
func composeBuild(ctx context.Context, p *Project, b *Builder, r run) error {
	plugins := filepath.Join(b.Config, "cli-plugins")
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		return errors.WithStack(err)
	}
	if err := os.Symlink(b.buildx, filepath.Join(plugins, "docker-buildx")); err != nil && !os.IsExist(err) {
		return errors.WithStack(err)
	}
	cmd := command(ctx, p.compose, "--progress", "plain", "build", "--no-cache")
	cmd.Dir = p.dir
	cmd.Env = slices.Concat(b.Command(ctx).Env, r.env, []string{"BUILDX_BUILDER=" + builderName})
	_, err := output(cmd)
	return err
}
