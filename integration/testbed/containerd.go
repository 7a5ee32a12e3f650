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

// containerd is the one that comes with Debian's Docker engine, in a mount
// namespace of its own.
type containerd struct {
	socket  string
	process *process
}

// startContainerd starts a containerd that keeps everything in dir. Its log is
// there, too.
func startContainerd(ctx context.Context, dir string) (_ *containerd, retErr error) {
	if !HasDocker() {
		return nil, errors.New("containerd has not been fetched")
	}
	docker, err := dockerDir()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	c := &containerd{socket: filepath.Join(dir, "containerd.sock")}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, filepath.Join(dir, "opt")), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(filepath.Join(dir, "containerd.log"))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(docker, "usr/bin/containerd"), "--config", config) //nolint:noctx // ended with the daemon
	cmd.Env = dockerEnv(docker)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
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
