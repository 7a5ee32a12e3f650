package testbed

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/pkg/errors"
)

// Activated is a daemon that starts with the first connection.
type Activated struct {
	Addr string // unix://

	log     string
	dir     string
	process *process
	cgroup  *cgroup
}

// StartActivated has systemd-socket-activate listen in place of a daemon. The
// caller must close the result.
func StartActivated(ctx context.Context, activate string, flavor Flavor) (_ *Activated, retErr error) {
	bin, err := Binary(flavor, "buildkitd")
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-activated-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "buildkitd.sock")
	a := &Activated{Addr: "unix://" + socket, log: filepath.Join(dir, "log"), dir: dir, cgroup: newCgroup()}
	defer func() {
		if retErr != nil {
			a.Close()
		}
	}()
	config := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(config, []byte("[worker.oci]\ngc = false\ndefaultCgroupParent = \""+a.cgroup.name+"\"\n"), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(a.log)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	// the command that listens becomes the daemon, as ExecStart of the unit
	cmd := exec.Command(activate, "--listen", socket, bin, "--addr", "fd://", "--config", config, "--root", filepath.Join(dir, "root"), //nolint:noctx // ended by Close
		"--otel-socket-path", filepath.Join(dir, "otel.sock"), "--containerd-worker=false", "--oci-worker-net=host", "--cdi-disabled=true")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if a.process, err = start(cmd); err != nil {
		return nil, err
	}
	err = a.process.await(ctx, startTimeout, func(context.Context) error {
		_, err := os.Stat(socket)
		return err
	})
	if err != nil {
		return nil, errors.Wrap(err, a.Log())
	}
	return a, nil
}

// Log returns the log of systemd-socket-activate and of the daemon.
func (a *Activated) Log() string {
	return tail(a.log, -1)
}

// Close ends the daemon, or systemd-socket-activate in its place, and removes the
// folder.
func (a *Activated) Close() error {
	return cmp.Or(closeProcess(a.process, a.dir), a.cgroup.remove())
}
