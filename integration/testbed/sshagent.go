package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// SSHAgent is a running ssh-agent with one fresh key.
type SSHAgent struct {
	Socket string
	cmd    *exec.Cmd
	dir    string
}

// StartSSHAgent starts an agent and adds a key to it. It must be closed.
func StartSSHAgent(ctx context.Context) (_ *SSHAgent, retErr error) {
	dir, err := os.MkdirTemp("", "graphload-ssh-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	a := &SSHAgent{Socket: filepath.Join(dir, "agent.sock"), dir: dir}
	defer func() {
		if retErr != nil {
			a.Close()
		}
	}()
	a.cmd = exec.Command("ssh-agent", "-D", "-a", a.Socket) //nolint:noctx // ended by Close
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		a.cmd = nil
		return nil, errors.WithStack(err)
	}
	key := filepath.Join(dir, "key")
	if _, err := run(ctx, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		if _, err = os.Stat(a.Socket); err == nil {
			break
		}
		if time.Since(start) > startTimeout {
			return nil, errors.Wrap(err, "ssh-agent does not listen")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := run(ctx, []string{"SSH_AUTH_SOCK=" + a.Socket}, "ssh-add", "-q", key); err != nil {
		return nil, err
	}
	return a, nil
}

// Close ends the agent and removes its key.
func (a *SSHAgent) Close() error {
	if a.cmd != nil {
		a.cmd.Process.Kill()
		a.cmd.Wait()
	}
	return errors.WithStack(os.RemoveAll(a.dir))
}
