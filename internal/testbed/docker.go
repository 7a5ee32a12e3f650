package testbed

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// dockerStartTimeout bounds the time until an engine answers.
const dockerStartTimeout = time.Minute

// dockerDir returns the folder that FetchDocker unpacks Debian's Docker engine to.
// It installs nothing, so no service starts and the machine stays as it is.
func dockerDir() (string, error) {
	return files.CacheDir("docker")
}

// HasDocker reports whether FetchDocker has fetched the engine.
func HasDocker() bool {
	dir, err := dockerDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "usr", "sbin", "dockerd"))
	return err == nil
}

// FetchDocker fetches the Docker engine of Debian, unless it is there already.
func FetchDocker(ctx context.Context) error {
	if HasDocker() {
		return nil
	}
	_, err := unpackPackages(ctx, "docker", "usr/sbin/dockerd", []string{"docker.io"})
	return err
}

// dockerEnv returns the environment for programs in dockerDir.
func dockerEnv(dir string) []string {
	return []string{
		"PATH=" + strings.Join([]string{filepath.Join(dir, "usr/sbin"), filepath.Join(dir, "usr/bin"), filepath.Join(dir, "sbin"), os.Getenv("PATH")}, ":"),
		libraryPath(dir),
	}
}

// Docker is a running Docker engine. Its containers use the network of the host.
type Docker struct {
	Host    string // unix://
	LogPath string
	Cgroup  string // parent for containers

	bin     string
	dir     string
	env     []string
	process *process
	cgroup  *cgroup
}

// StartDocker starts an engine that keeps all of its state in a temporary folder.
// The caller must close it.
func StartDocker(ctx context.Context) (_ *Docker, retErr error) {
	bin, err := dockerDir()
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-docker-")
	if err != nil {
		return nil, err
	}
	d := &Docker{
		Host: "unix://" + filepath.Join(dir, "docker.sock"), LogPath: filepath.Join(dir, "dockerd.log"),
		bin: bin, dir: dir, cgroup: newCgroup(),
	}
	d.Cgroup = "/" + d.cgroup.name
	defer func() {
		if retErr != nil {
			retErr = errors.Wrapf(retErr, "failed to start dockerd: %s", tail(d.LogPath, 20))
			d.Close()
		}
	}()
	d.env = append(dockerEnv(bin), "HOME="+dir, "TMPDIR="+dir, "DOCKER_HOST="+d.Host, "DOCKER_CONFIG="+filepath.Join(dir, "config"))
	fit := filepath.Join(dir, "fitruntime")
	if err := buildFitruntime(ctx, fit); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"runtimes": {"fit": {"path": %q}}, "default-runtime": "fit"}`, fit), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(d.LogPath)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	initPath, err := findFile(bin, "docker-init")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(bin, "usr/sbin/dockerd"), //nolint:noctx // ended by Close
		"--config-file", config, "--host", d.Host, "--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "docker.pid"), "--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", d.Cgroup, "--init-path", initPath, "--storage-driver", "overlay2")
	cmd.Env = d.env
	cmd.Stdout, cmd.Stderr = log, log
	// in its own mount namespace, mounts of the engine end with it even if it is killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if d.process, err = start(cmd); err != nil {
		return nil, err
	}
	return d, d.process.await(ctx, dockerStartTimeout, func(ctx context.Context) error {
		_, err := d.Run(ctx, "version")
		return err
	})
}

// buildFitruntime builds a runtime that can start the containers of engines.
func buildFitruntime(ctx context.Context, path string) error {
	_, err := output(command(ctx, "go", "build", "-buildvcs=false", "-o", path, "github.com/graphload/graphload/internal/testbed/fitruntime"))
	return err
}

// findFile returns the path of the file with the given name below dir.
func findFile(dir, name string) (found string, _ error) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() == name {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = errors.Errorf("no %s in %s", name, dir)
	}
	return found, errors.WithStack(err)
}

// Run runs the docker command and returns its output.
func (d *Docker) Run(ctx context.Context, args ...string) (string, error) {
	cmd := command(ctx, filepath.Join(d.bin, "usr/bin/docker"), args...)
	cmd.Env = d.env
	dt, err := output(cmd)
	return strings.TrimSpace(string(dt)), err
}

// NewBuilder creates a builder with the docker-container driver from an image
// that the engine has loaded. Closing the builder keeps the volume with its state,
// which the next builder of the same name uses.
func (d *Docker) NewBuilder(ctx context.Context, version, name, image string) (_ *Builder, retErr error) {
	b, err := newBuilder(ctx, version, "DOCKER_HOST="+d.Host)
	if err != nil {
		return nil, err
	}
	b.remove = name
	defer func() {
		if retErr != nil {
			b.Close()
		}
	}()
	_, err = output(b.Command(ctx, "create", "--use", "--bootstrap", "--name", name, "--driver", "docker-container",
		"--driver-opt", "image="+image, "--driver-opt", "network=host", "--driver-opt", "cgroup-parent="+d.Cgroup,
		"--buildkitd-flags", "--oci-worker-net=host --debug"))
	return b, err
}

// Close ends the engine and its containers, and removes its folder.
func (d *Docker) Close() error {
	var err error
	if d.process != nil {
		if ids, psErr := d.Run(context.Background(), "ps", "-aq"); psErr == nil && ids != "" {
			_, err = d.Run(context.Background(), slices.Concat([]string{"rm", "-f"}, strings.Fields(ids))...)
		}
		if stopErr := d.process.stop(); err == nil {
			err = stopErr
		}
	}
	if cgroupErr := d.cgroup.remove(); err == nil {
		err = cgroupErr
	}
	if rmErr := os.RemoveAll(d.dir); err == nil {
		err = errors.WithStack(rmErr)
	}
	return err
}
