package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gomod"
	dockerclient "github.com/moby/moby/client"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// containerdVersion is the release that moby builds and tests the Docker engine with.
const (
	containerdVersion = "v2.3.5"
	containerdSum     = "h1:9MYlI81gUcOZ0WsCkSMtvOU7rTR3hqAoa2eCzhoLlkA="
)

// ContainerdBinary returns the path of an unmodified containerd. The first call
// builds it into the cache folder of the user.
func ContainerdBinary(ctx context.Context) (string, error) {
	const module = "github.com/containerd/containerd/v2"
	return gomod.Tool{
		Module:  gomod.Module{Path: module, Version: containerdVersion, Sum: containerdSum},
		Pkg:     "./cmd/containerd",
		LDFlags: "-X " + module + "/version.Version=" + containerdVersion,
	}.Install(ctx)
}

// EngineVersion returns the version that dockerd prints.
func EngineVersion(ctx context.Context, flavor Flavor) (string, error) {
	bin, err := Binary(flavor, "dockerd")
	if err != nil {
		return "", err
	}
	out, err := output(command(ctx, bin, "--version"))
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "Docker version "), ",")
	return version, err
}

// EnginePrograms returns the versions of the programs that the scenarios use on an
// engine beside buildx.
func EnginePrograms() []string {
	return []string{"containerd " + containerdVersion, "docker command " + dockerVersion, "docker compose " + composeVersion}
}

// shimName is the program that containerd looks for in PATH to start a container.
const shimName = "containerd-shim-runc-v2"

// shimBinary returns the path of the shim of ContainerdBinary.
func shimBinary(ctx context.Context) (string, error) {
	return gomod.Tool{
		Module: gomod.Module{Path: "github.com/containerd/containerd/v2", Version: containerdVersion, Sum: containerdSum},
		Pkg:    "./cmd/" + shimName,
	}.Install(ctx)
}

// EngineOptions configure an engine. The zero value has the defaults of Docker.
type EngineOptions struct {
	Flavor Flavor
	// GraphDriver makes the engine keep images in the overlay2 graph driver, for one
	// platform, and not in containerd.
	GraphDriver bool
	// LiveRestore leaves containers running while the engine restarts.
	LiveRestore bool
	Root        string   // for images, containers and the cache, a temporary one by default
	Env         []string // added to the environment
}

// Engine is a running Docker engine built by graphload engine, with a containerd that
// it does not share. Its network namespace has no route to the machine; see Forward.
type Engine struct {
	Flavor  Flavor
	Host    string // unix://
	LogPath string

	opt        EngineOptions
	env        []string
	process    *process
	containerd *containerd
	cgroup     *cgroup
	forwards   []*forward
	dir        string
}

// StartEngine starts an engine with all of its state in a temporary folder. The
// caller must close it.
func StartEngine(ctx context.Context, opt EngineOptions) (_ *Engine, retErr error) {
	containerdBin, err := ContainerdBinary(ctx)
	if err != nil {
		return nil, err
	}
	shim, err := shimBinary(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-engine-")
	if err != nil {
		return nil, err
	}
	e := &Engine{
		Flavor: opt.Flavor, Host: "unix://" + filepath.Join(dir, "docker.sock"), LogPath: filepath.Join(dir, "dockerd.log"),
		opt: opt, cgroup: newCgroup(), dir: dir,
	}
	OnAbort(e.killShims)
	defer func() {
		if retErr != nil {
			e.Close()
		}
	}()
	if e.opt.Root == "" {
		e.opt.Root = filepath.Join(dir, "data")
	}
	if err := os.Mkdir(e.bin(), 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	for name, path := range map[string]string{"containerd": containerdBin, shimName: shim} {
		if err := os.Symlink(path, filepath.Join(e.bin(), name)); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	fit := filepath.Join(e.bin(), "fitruntime")
	if err := buildFitruntime(ctx, fit); err != nil {
		return nil, err
	}
	e.env = []string{e.Path(), "HOME=" + dir, "TMPDIR=" + dir}
	// The bridge docker0 is in a network namespace, so that several engines can have
	// one and the network of the machine stays as it is. The namespace lives as long
	// as containerd.
	e.containerd, err = runContainerd(ctx, filepath.Join(dir, "containerd"), filepath.Join(e.opt.Root, "containerd"), 3, containerdBin, e.env, unix.CLONE_NEWNET)
	if err != nil {
		return nil, err
	}
	if err := e.inside(ctx, "busybox", "ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	driver := ""
	if opt.GraphDriver {
		driver = `, "storage-driver": "overlay2"`
	}
	// garbage collection is off, because it depends on how full the disk of the machine is
	if err := os.WriteFile(e.config(), fmt.Appendf(nil, `{"features": {"containerd-snapshotter": %t}, "builder": {"gc": {"enabled": false}}, "live-restore": %t,
"runtimes": {"fit": {"path": %q}}, "default-runtime": "fit"%s}`,
		!opt.GraphDriver, opt.LiveRestore, fit, driver), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	return e, e.start(ctx)
}

// Enter returns the start of a command that runs in the mount and network namespaces
// of the engine.
func (e *Engine) Enter() []string {
	return []string{"nsenter", "--target", strconv.Itoa(e.containerd.process.cmd.Process.Pid), "--mount", "--net", "--"}
}

// inside runs a command in these namespaces.
func (e *Engine) inside(ctx context.Context, args ...string) error {
	args = append(e.Enter(), args...)
	_, err := output(command(ctx, args[0], args[1:]...))
	return err
}

// ShareContainerd makes the containerd of the engine available at its default
// address in the mount namespace of the engine. Moby's tests that start more engines
// look for it there.
func (e *Engine) ShareContainerd(ctx context.Context) error {
	return e.inside(ctx, "sh", "-ec", `mount -t tmpfs tmpfs /run && mkdir -p /run/docker/containerd && ln -s "$1" /run/docker/containerd/containerd.sock`, "sh", e.containerd.socket)
}

func (e *Engine) bin() string {
	return filepath.Join(e.dir, "bin")
}

// Path returns the PATH of the engine. Its first folder has the binaries of the
// engine and the programs that it runs.
func (e *Engine) Path() string {
	return "PATH=" + e.bin() + ":" + os.Getenv("PATH")
}

func (e *Engine) config() string {
	return filepath.Join(e.dir, "daemon.json")
}

// start starts dockerd and returns when it answers.
func (e *Engine) start(ctx context.Context) (retErr error) {
	defer func() {
		if retErr != nil {
			retErr = errors.Wrapf(retErr, "failed to start dockerd: %s", tail(e.LogPath, 20))
		}
	}()
	for _, name := range []string{"dockerd", "docker-proxy"} {
		path, err := Binary(e.Flavor, name)
		if err != nil {
			return err
		}
		link := filepath.Join(e.bin(), name)
		if err := os.RemoveAll(link); err != nil {
			return errors.WithStack(err)
		}
		if err := os.Symlink(path, link); err != nil {
			return errors.WithStack(err)
		}
	}
	log, err := os.OpenFile(e.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.WithStack(err)
	}
	defer log.Close()
	// dockerd and containerd see the mounts of each other
	args := append(e.Enter(), filepath.Join(e.bin(), "dockerd"), "--config-file", e.config(), "--host", e.Host,
		"--containerd", e.containerd.socket, "--data-root", filepath.Join(e.opt.Root, "docker"), "--exec-root", filepath.Join(e.dir, "exec"),
		"--pidfile", filepath.Join(e.dir, "docker.pid"), "--iptables=false", "--ip6tables=false", "--userland-proxy-path", filepath.Join(e.bin(), "docker-proxy"),
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+e.cgroup.name)
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // ended by Close
	cmd.Env = slices.Concat(e.env, e.opt.Env)
	cmd.Stdout, cmd.Stderr = log, log
	if e.process, err = start(cmd); err != nil {
		return err
	}
	return e.process.await(ctx, dockerStartTimeout, func(ctx context.Context) error {
		_, err := e.Get(ctx, "/_ping")
		return err
	})
}

// Restart stops dockerd and starts the given flavor in its place, as a service
// manager does. containerd keeps running.
func (e *Engine) Restart(ctx context.Context, flavor Flavor) error {
	if err := e.process.stop(); err != nil {
		return err
	}
	e.Flavor = flavor
	return e.start(ctx)
}

// Get sends a GET request to the API of the engine and returns the body.
func (e *Engine) Get(ctx context.Context, path string) ([]byte, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(e.Host, "unix://"))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, dt)
	}
	return dt, errors.WithStack(err)
}

// NewBuilder returns a version of buildx whose default builder is the engine, with
// the docker driver. The caller must close it.
func (e *Engine) NewBuilder(ctx context.Context, version string) (*Builder, error) {
	b, err := newBuilder(ctx, version, "DOCKER_HOST="+e.Host)
	if err != nil {
		return nil, err
	}
	b.forward = e.Forward
	return b, nil
}

// Load loads images from an archive, as docker load does.
func (e *Engine) Load(ctx context.Context, archive io.Reader) error {
	c, err := dockerclient.New(dockerclient.WithHost(e.Host))
	if err != nil {
		return errors.WithStack(err)
	}
	defer c.Close()
	resp, err := c.ImageLoad(ctx, archive)
	if err != nil {
		return errors.WithStack(err)
	}
	defer resp.Close()
	out, err := io.ReadAll(resp)
	if err == nil && strings.Contains(string(out), `"errorDetail"`) {
		err = errors.Errorf("failed to load images: %s", out)
	}
	return errors.WithStack(err)
}

// LogTail returns the last n lines of the log, or all of it if n is negative.
func (e *Engine) LogTail(n int) string {
	return tail(e.LogPath, n)
}

// SaveLog copies the log to a file that Close does not remove.
func (e *Engine) SaveLog(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.WithStack(err)
	}
	return files.Copy(e.LogPath, path, 0o644)
}

// Close ends the engine with its containers, and removes its folder.
func (e *Engine) Close() error {
	var errs []error
	for _, f := range e.forwards {
		errs = append(errs, f.Close())
	}
	if e.process != nil {
		errs = append(errs, e.removeContainers(context.Background()), e.process.stop())
	}
	errs = append(errs, e.cgroup.remove(), e.killShims())
	if e.containerd != nil {
		errs = append(errs, e.containerd.process.stop())
	}
	errs = append(errs, errors.WithStack(os.RemoveAll(e.dir)))
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// removeContainers removes the containers of a running engine. With LiveRestore, the
// engine would leave them running.
func (e *Engine) removeContainers(ctx context.Context) error {
	select {
	case <-e.process.done:
		return nil
	default:
	}
	c, err := dockerclient.New(dockerclient.WithHost(e.Host))
	if err != nil {
		return errors.WithStack(err)
	}
	defer c.Close()
	list, err := c.ContainerList(ctx, dockerclient.ContainerListOptions{All: true})
	if err != nil {
		return errors.WithStack(err)
	}
	for _, ctr := range list.Items {
		if _, err := c.ContainerRemove(ctx, ctr.ID, dockerclient.ContainerRemoveOptions{Force: true}); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

// killShims ends the shims of containers that an engine left when it was killed.
func (e *Engine) killShims() error {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return errors.WithStack(err)
	}
	for _, path := range paths {
		dt, err := os.ReadFile(path)
		if err != nil { // the process has ended
			continue
		}
		args := strings.Split(string(dt), "\x00")
		// the name of the file includes the version of the shim
		if !strings.HasPrefix(filepath.Base(args[0]), shimName) || !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, e.dir+"/") }) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return errors.WithStack(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return errors.WithStack(err)
		}
	}
	return nil
}
