package testbed

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/pkg/errors"
)

// containerd is a containerd process in its own mount namespace.
type containerd struct {
	socket  string
	process *process
}

// startContainerd starts the containerd that comes with Debian's Docker engine.
func startContainerd(ctx context.Context, dir string) (*containerd, error) {
	if !HasDocker() {
		return nil, errors.New("containerd has not been fetched")
	}
	docker, err := dockerDir()
	if err != nil {
		return nil, err
	}
	return runContainerd(ctx, dir, filepath.Join(dir, "root"), 2, filepath.Join(docker, "usr/bin/containerd"), dockerEnv(docker), 0)
}

// runContainerd starts a containerd that stores its data in root, and everything
// else, including its log, in dir. It unshares the mount namespace and the given
// namespaces.
func runContainerd(ctx context.Context, dir, root string, configVersion int, bin string, env []string, namespaces uintptr) (_ *containerd, retErr error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	c := &containerd{socket: filepath.Join(dir, "containerd.sock")}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version = %d
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
`, configVersion, root, filepath.Join(dir, "state"), c.socket, filepath.Join(dir, "opt")), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(filepath.Join(dir, "containerd.log"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	cmd := exec.Command(bin, "--config", config) //nolint:noctx // ended with the daemon
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | namespaces}
	if c.process, err = start(cmd); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Wrapf(retErr, "failed to start containerd: %s", tail(log.Name(), 20))
			c.process.stop()
		}
	}()
	return c, c.process.await(ctx, startTimeout, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
