package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/release"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var (
	dockerTests   = flag.Bool("docker", false, "run the tests that need a Docker engine")
	containerRuns = flag.Int("container-runs", 2, "runs of each scenario with each buildx in a container")
)

// containerBuildx are the versions of buildx that run against containers.
var containerBuildx = []string{"v0.29.1", "v0.38.2"}

// requireDocker skips the test unless graphload docker runs it, which fetches the
// engine.
func requireDocker(t *testing.T) {
	t.Helper()
	requireTestbed(t)
	if !*dockerTests {
		t.Skip("takes long: run graphload docker")
	}
	require.NoError(t, testbed.FetchDocker(t.Context()))
}

// imageSet has images for this machine, one for each flavor. They differ only in
// buildkitd and buildctl. Each is built when a test needs it.
type imageSet struct {
	mu    sync.Mutex
	dir   string
	files map[string]string
}

var containerImages imageSet

// removeImages removes the images that the tests have built.
func removeImages() {
	if containerImages.dir != "" {
		os.RemoveAll(containerImages.dir)
	}
}

// imageOf returns a name that resolves to no registry.
func imageOf(flavor testbed.Flavor, v release.Variant) string {
	return "127.0.0.1:1/" + string(flavor) + ":" + string(v)
}

// file returns the archive of an image.
func (s *imageSet) file(ctx context.Context, flavor testbed.Flavor, v release.Variant) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := imageOf(flavor, v)
	if file := s.files[name]; file != "" {
		return file, nil
	}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "graphload-images-")
		if err != nil {
			return "", err
		}
		s.dir, s.files = dir, map[string]string{}
	}
	file := filepath.Join(s.dir, fmt.Sprintf("%s-%s.tar", flavor, v))
	if err := buildImage(ctx, filepath.Join(s.dir, string(flavor)), flavor, v, file); err != nil {
		return "", err
	}
	s.files[name] = file
	return file, nil
}

// cachedComponent builds a component into the folder of the builder, unless the folder
// cache has it.
func cachedComponent(ctx context.Context, b *release.Builder, c release.Component, cache string) error {
	file := filepath.Join(cache, c.Name+"-"+c.Module.Version+"-"+b.Arch)
	if _, err := os.Stat(file); err != nil {
		if _, err := b.BuildComponent(ctx, c); err != nil {
			return err
		}
		if err := files.Copy(filepath.Join(b.Dir, c.Name), file, 0o755); err != nil {
			return err
		}
	}
	return files.Copy(file, filepath.Join(b.Dir, c.Name), 0o755)
}

// buildImage has a daemon of this repository build an image in the folder dir.
func buildImage(ctx context.Context, dir string, flavor testbed.Flavor, v release.Variant, file string) (retErr error) {
	root, err := upstream.Root()
	if err != nil {
		return err
	}
	tools, err := files.CacheDir("tools")
	if err != nil {
		return err
	}
	archive := sync.OnceValues(func() (*apt.Archive, error) {
		debs, err := files.CacheDir("debian")
		if err != nil {
			return nil, err
		}
		return apt.Open(ctx, debs, runtime.GOARCH, apt.DefaultMirror)
	})
	c, err := release.NewImageContext(dir)
	if err != nil {
		return err
	}
	if err := c.Prepare(ctx, filepath.Join(root, "packaging", "image"), []string{runtime.GOARCH}, func(string) (*apt.Archive, error) { return archive() }); err != nil {
		return err
	}
	a, err := archive()
	if err != nil {
		return err
	}
	b := &release.Builder{Arch: runtime.GOARCH, Dir: c.BinDir(runtime.GOARCH), Work: dir + ".work", Archive: a}
	for _, component := range release.Components {
		if err := cachedComponent(ctx, b, component, tools); err != nil {
			return err
		}
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		bin, err := testbed.Binary(flavor, name)
		if err != nil {
			return err
		}
		if err := files.Copy(bin, filepath.Join(b.Dir, name), 0o755); err != nil {
			return err
		}
	}
	licenses, err := b.Licenses(ctx)
	if err != nil {
		return err
	}
	if err := c.AddLicenses(licenses); err != nil {
		return err
	}
	d, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: testbed.Graphload, Quiet: true})
	if err != nil {
		return err
	}
	defer func() {
		if err := d.Close(); retErr == nil {
			retErr = err
		}
	}()
	bk, err := client.New(ctx, d.Addr)
	if err != nil {
		return err
	}
	defer bk.Close()
	if err := c.Build(ctx, bk, release.ImageOptions{
		Variant: v, Archs: []string{runtime.GOARCH}, Name: imageOf(flavor, v), Output: file + ".oci",
	}); err != nil {
		return err
	}
	if err := release.CheckImage(file+".oci", []string{runtime.GOARCH}); err != nil {
		return err
	}
	return release.WriteDockerArchive(file+".oci", runtime.GOARCH, imageOf(flavor, v), file)
}

// newDocker starts an engine that has the images.
func newDocker(t *testing.T, v release.Variant, flavors ...testbed.Flavor) *testbed.Docker {
	t.Helper()
	requireDocker(t)
	var files []string
	for _, flavor := range flavors {
		file, err := containerImages.file(t.Context(), flavor, v)
		require.NoError(t, err)
		files = append(files, file)
	}
	d := startDocker(t)
	for _, file := range files {
		_, err := d.Run(t.Context(), "load", "-i", file)
		require.NoError(t, err)
	}
	return d
}

// startDocker starts an engine for the test.
func startDocker(t *testing.T) *testbed.Docker {
	t.Helper()
	d, err := testbed.StartDocker(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			dt, _ := os.ReadFile(d.LogPath)
			t.Logf("log of dockerd:\n%s", dt)
		}
		require.NoError(t, d.Close())
	})
	return d
}

// newContainerBuilder creates the builder for the test. All builders use the same
// container, so a test can have only one.
func newContainerBuilder(t *testing.T, d *testbed.Docker, version, image string) *testbed.Builder {
	t.Helper()
	b, err := d.NewBuilder(t.Context(), version, builderName, image)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// builderName is the name of the builder, and containerName that of the container that
// buildx creates for it.
const (
	builderName   = "proof"
	containerName = "buildx_buildkit_" + builderName + "0"
)

// TestDockerContainer bakes the scenarios through the docker-container driver, with the
// image of this repository.
func TestDockerContainer(t *testing.T) {
	d := newDocker(t, release.Rootful, testbed.Graphload)
	bakeInContainer(t, d, imageOf(testbed.Graphload, release.Rootful), *containerRuns)
}

// bakeInContainer bakes the scenarios with each buildx in a container of the image.
func bakeInContainer(t *testing.T, d *testbed.Docker, image string, runs int) {
	t.Helper()
	for _, version := range containerBuildx {
		t.Run("buildx "+version, func(t *testing.T) {
			runScenarios(t, newContainerBuilder(t, d, version, image), runs)
		})
	}
}

// TestDockerShippedImage bakes the scenarios with the image that graphload dist has
// written, loaded under the name that the README uses.
func TestDockerShippedImage(t *testing.T) {
	requireDocker(t)
	root, err := upstream.Root()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(root, "dist", "buildkit-*.docker-"+runtime.GOARCH+".tar"))
	require.NoError(t, err)
	if len(files) == 0 {
		t.Skip("no image in dist: run make dist")
	}
	require.Len(t, files, 1)
	d := startDocker(t)
	out, err := d.Run(t.Context(), "load", "-i", files[0])
	require.NoError(t, err)
	_, image, ok := strings.Cut(out, "Loaded image: ")
	require.True(t, ok, out)
	require.True(t, strings.HasPrefix(image, "graphload.invalid/buildkit:"), image)
	version, err := d.Run(t.Context(), "run", "--rm", "--network=host", "--entrypoint", "buildkitd", image, "--version")
	require.NoError(t, err)
	require.Contains(t, version, "+graphload")
	t.Logf("%s: %s", filepath.Base(files[0]), version)
	bakeInContainer(t, d, image, 1)
}

// TestDockerContainerTools runs the programs that a daemon starts, in the image.
func TestDockerContainerTools(t *testing.T) {
	for _, v := range release.Variants {
		t.Run(string(v), func(t *testing.T) {
			d := newDocker(t, v, testbed.Graphload)
			for _, command := range []string{
				"buildkitd --version", "buildctl --version", "buildkit-runc --version", "git --version", "git ls-remote /nowhere 2>&1 | grep -i 'does not appear'",
				"ssh -V", "openssl version", "pigz --version", "xz --version", "fuse-overlayfs --version", "fusermount3 --version",
				"test $(grep -c BEGIN /etc/ssl/certs/ca-certificates.crt) -gt 100", "test $(stat -c %a /tmp) = 1777",
				map[release.Variant]string{release.Rootful: "iptables --version", release.Rootless: "rootlesskit --version && newuidmap 2>&1 | grep usage && id | grep 'uid=1000(user)'"}[v],
			} {
				out, err := d.Run(t.Context(), "run", "--rm", "--network=host", "--entrypoint", "sh", imageOf(testbed.Graphload, v), "-ec", command)
				require.NoError(t, err, command)
				t.Logf("%s: %s", command, out)
			}
			out, err := d.Run(t.Context(), "run", "--rm", "--network=host", "--volume", newRepositories(t)+":/src:ro", "--entrypoint", "sh", imageOf(testbed.Graphload, v), "-ec", cloneRepositories)
			require.NoError(t, err)
			require.Equal(t, "from the submodule", out)
		})
	}
}

// cloneRepositories clones the repositories of newRepositories as BuildKit's git source
// does. Only the test allows the owner and the transport.
const cloneRepositories = `
git config --global safe.directory '*'
git config --global protocol.file.allow always
git clone -q --depth 1 file:///src/outer /tmp/outer
cd /tmp/outer
git submodule --quiet update --init --recursive --depth=1
cat inner/note
`

// newRepositories returns a folder with the repository outer, which has the
// repository inner as a submodule.
func newRepositories(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git := func(repo string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=testbed", "-c", "user.email=testbed@localhost"}, args...)...)
		cmd.Dir = filepath.Join(dir, repo)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", cmd, out)
		return strings.TrimSpace(string(out))
	}
	for repo, file := range map[string][2]string{
		"inner": {"note", "from the submodule"},
		"outer": {".gitmodules", "[submodule \"inner\"]\n\tpath = inner\n\turl = ../inner\n"},
	} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, repo), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, repo, file[0]), []byte(file[1]), 0o644))
		git(repo, "init", "-q", "-b", "main")
		git(repo, "add", file[0])
		git(repo, "commit", "-q", "-m", "initial")
	}
	git("outer", "update-index", "--add", "--cacheinfo", "160000,"+git("inner", "rev-parse", "HEAD")+",inner")
	git("outer", "commit", "-q", "-m", "submodule")
	return dir
}

// TestDockerContainerUpgrade replaces the image of a builder: from upstream's daemon to
// that of this repository and back, on the same volume. The cache is kept, and the
// history keeps all builds.
func TestDockerContainerUpgrade(t *testing.T) {
	d := newDocker(t, release.Rootful, testbed.Upstream, testbed.Graphload)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY rootfs /\nRUN echo made by a step > /made\n"), 0o600))

	for i, flavor := range []testbed.Flavor{testbed.Upstream, testbed.Graphload, testbed.Upstream} {
		ok := t.Run(fmt.Sprintf("%d %s", i+1, flavor), func(t *testing.T) {
			b := newContainerBuilder(t, d, "v0.38.2", imageOf(flavor, release.Rootful))
			version, err := d.Run(t.Context(), "exec", containerName, "buildkitd", "--version")
			require.NoError(t, err)
			require.Equal(t, flavor == testbed.Graphload, strings.Contains(version, "+graphload"), version)

			before := histories(t, d)
			require.Len(t, before, i, "builds of the daemons before this one")
			out, err := b.Output(t.Context(), dir, nil, "build", "--progress", "plain", "--output", "type=cacheonly", ".")
			require.NoError(t, err)
			cached := strings.Count(out, " CACHED\n")
			t.Logf("%s: %d steps from the cache, %d builds in the history before", flavor, cached, len(before))
			if i == 0 {
				require.Zero(t, cached, out)
			} else {
				require.Equal(t, 2, cached, "COPY and RUN: %s", out)
			}
			after := histories(t, d)
			require.Len(t, after, i+1)
			for _, ref := range before {
				require.Contains(t, after, ref)
			}
			if i > 0 {
				logs, err := d.Run(t.Context(), "exec", containerName, "buildctl", "debug", "logs", "--progress", "plain", before[0])
				require.NoError(t, err)
				require.Contains(t, logs, "RUN echo made by a step", "the log of the first build")
			}
		})
		require.True(t, ok, "the next daemon continues with the state of this one")
	}
}

// histories returns the refs of all builds in the history of the daemon.
func histories(t *testing.T, d *testbed.Docker) (refs []string) {
	t.Helper()
	out, err := d.Run(t.Context(), "exec", containerName, "buildctl", "debug", "histories", "--format", "{{.Record.Ref}}")
	require.NoError(t, err)
	for line := range strings.Lines(out) {
		if ref := strings.TrimSpace(line); ref != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}

// TestDockerRootless starts the rootless image and bakes the scenarios in it. If the
// machine does not let a user create namespaces, the test fails with the container's log.
func TestDockerRootless(t *testing.T) {
	d := newDocker(t, release.Rootless, testbed.Graphload)
	const name = "rootless"
	port := freePort(t)
	_, err := d.Run(t.Context(), "run", "-d", "--name", name, "--network=host", "--cgroup-parent", d.Cgroup,
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined", "--device", "/dev/fuse",
		imageOf(testbed.Graphload, release.Rootless), "--addr", "unix:///run/user/1000/buildkit/buildkitd.sock", "--addr", fmt.Sprintf("tcp://127.0.0.1:%d", port),
		"--oci-worker-no-process-sandbox", "--oci-worker-net=host")
	require.NoError(t, err)
	waitContainer(t, d, name, "buildctl", "debug", "workers")
	workers, err := d.Run(t.Context(), "exec", name, "buildctl", "debug", "workers", "-v")
	require.NoError(t, err)
	require.Regexp(t, `worker\.executor:\s+oci\n`, workers)
	id, err := d.Run(t.Context(), "exec", name, "id", "-u")
	require.NoError(t, err)
	require.Equal(t, "1000", id)
	for line := range strings.Lines(workers) {
		if strings.Contains(line, "snapshotter") {
			t.Log(strings.TrimSpace(line))
		}
	}
	for _, version := range containerBuildx {
		b, err := testbed.NewRemoteBuilder(t.Context(), version, fmt.Sprintf("tcp://127.0.0.1:%d", port))
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close()) }()
		runScenarios(t, b, *containerRuns)
	}
}

// waitContainer waits until a command succeeds in a container.
func waitContainer(t *testing.T, d *testbed.Docker, name string, command ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := d.Run(t.Context(), append([]string{"exec", name}, command...)...)
		if err == nil {
			return
		}
		state, stateErr := d.Run(t.Context(), "inspect", "-f", "{{.State.Running}}", name)
		if time.Now().After(deadline) || (stateErr == nil && state == "false") {
			logs, _ := d.Run(t.Context(), "logs", name)
			require.NoError(t, err, "running: %s, log:\n%s", state, logs)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
