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
	"github.com/pkg/errors"
)

// containerdVersion is the release that the Docker engine is built and tested with.
const containerdVersion = "v2.3.5"

// ContainerdBinary returns the path of an unmodified containerd. It is built when it
// is used for the first time, and kept in the cache folder of the user.
func ContainerdBinary(ctx context.Context) (string, error) {
	const module = "github.com/containerd/containerd/v2"
	return gomod.Tool{
		Module:  gomod.Module{Path: module, Version: containerdVersion, Sum: "h1:9MYlI81gUcOZ0WsCkSMtvOU7rTR3hqAoa2eCzhoLlkA="},
		Pkg:     "./cmd/containerd",
		LDFlags: "-X " + module + "/version.Version=" + containerdVersion,
	}.Install(ctx)
}

// EngineOptions are how an engine differs from one with the defaults of Docker.
type EngineOptions struct {
	Flavor Flavor
	// GraphDriver has it keep images in the overlay2 graph driver, for one platform,
	// and not in containerd.
	GraphDriver bool
	Root        string   // for images, containers and the cache, a temporary one by default
	Env         []string // added to the environment
}

// Engine is a running Docker engine as graphload engine builds it, beside a
// containerd that it does not share. Its network namespace has no way out.
type Engine struct {
	Flavor  Flavor
	Host    string // unix://
	LogPath string

	process    *process
	containerd *containerd
	cgroup     *cgroup
	dir        string
}

// StartEngine starts an engine with all of its state in a temporary folder. It must
// be closed.
func StartEngine(ctx context.Context, opt EngineOptions) (_ *Engine, retErr error) {
	bin, err := Binary(opt.Flavor, "dockerd")
	if err != nil {
		return nil, err
	}
	proxy, err := Binary(opt.Flavor, "docker-proxy")
	if err != nil {
		return nil, err
	}
	containerdBin, err := ContainerdBinary(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-engine-")
	if err != nil {
		return nil, err
	}
	e := &Engine{
		Flavor: opt.Flavor, Host: "unix://" + filepath.Join(dir, "docker.sock"), LogPath: filepath.Join(dir, "dockerd.log"),
		cgroup: newCgroup(), dir: dir,
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Wrapf(retErr, "failed to start dockerd: %s", tail(e.LogPath, 20))
			e.Close()
		}
	}()
	if opt.Root == "" {
		opt.Root = filepath.Join(dir, "data")
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	if e.containerd, err = runContainerd(ctx, filepath.Join(dir, "containerd"), filepath.Join(opt.Root, "containerd"), 3, containerdBin, env); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "daemon.json")
	driver := ""
	if opt.GraphDriver {
		driver = `, "storage-driver": "overlay2"`
	}
	// what is collected depends on how full the disk of the machine is
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"features": {"containerd-snapshotter": %t}, "builder": {"gc": {"enabled": false}}%s}`, !opt.GraphDriver, driver), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(e.LogPath)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	// Each finds what the other mounts. The bridge docker0 is in a network namespace,
	// so that several engines have one, and the machine keeps its network.
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(e.containerd.process.cmd.Process.Pid), "--mount", "--", //nolint:noctx // ended by Close
		"unshare", "--net", "--", bin, "--config-file", config, "--host", e.Host, "--containerd", e.containerd.socket,
		"--data-root", filepath.Join(opt.Root, "docker"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "docker.pid"),
		"--iptables=false", "--ip6tables=false", "--userland-proxy-path", proxy,
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+e.cgroup.name)
	cmd.Env = slices.Concat(env, opt.Env)
	cmd.Stdout, cmd.Stderr = log, log
	if e.process, err = start(cmd); err != nil {
		return nil, err
	}
	return e, e.process.await(ctx, dockerStartTimeout, func(ctx context.Context) error {
		_, err := e.Get(ctx, "/_ping")
		return err
	})
}

// Get asks the API of the engine.
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

// NewBuilder returns a version of buildx whose default builder is the engine: that of
// the docker driver. It must be closed.
func (e *Engine) NewBuilder(ctx context.Context, version string) (*Builder, error) {
	return newBuilder(ctx, version, "DOCKER_HOST="+e.Host)
}

// LogTail returns the last n lines of the log, or all of it if n is negative.
func (e *Engine) LogTail(n int) string {
	return tail(e.LogPath, n)
}

// SaveLog copies the log to a file that is there after Close.
func (e *Engine) SaveLog(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.WithStack(err)
	}
	return files.Copy(e.LogPath, path, 0o644)
}

// Close ends the engine and removes its folder.
func (e *Engine) Close() error {
	var errs []error
	if e.process != nil {
		errs = append(errs, e.process.stop())
	}
	if e.containerd != nil {
		errs = append(errs, e.containerd.process.stop())
	}
	errs = append(errs, e.cgroup.remove(), errors.WithStack(os.RemoveAll(e.dir)))
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
