package testbed

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// SSHAgent is a running ssh-agent with one fresh key.
type SSHAgent struct {
	Socket    string
	PublicKey string // as in authorized_keys

	process *process
	dir     string
}

// StartSSHAgent starts an agent and adds a key to it, with name as the comment of the
// key. The caller must close the agent.
func StartSSHAgent(ctx context.Context, name string) (_ *SSHAgent, retErr error) {
	dir, err := tempDir("graphload-ssh-")
	if err != nil {
		return nil, err
	}
	a := &SSHAgent{Socket: filepath.Join(dir, "agent.sock"), dir: dir}
	defer func() {
		if retErr != nil {
			a.Close()
		}
	}()
	key := filepath.Join(dir, "id_ed25519")
	if _, err := output(command(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key)); err != nil {
		return nil, err
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	a.PublicKey = string(pub)

	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer r.Close()
	cmd := exec.Command("ssh-agent", "-D", "-a", a.Socket) //nolint:noctx // ended by Close
	cmd.Stdout = w
	a.process, err = start(cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	// ssh-agent prints the path of its socket once it listens
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return nil, errors.Wrap(err, "ssh-agent did not start")
	}
	add := command(ctx, "ssh-add", "-q", key)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+a.Socket)
	if _, err := output(add); err != nil {
		return nil, err
	}
	return a, nil
}

// Kill ends the agent and leaves its socket behind, with nothing listening on it.
func (a *SSHAgent) Kill() error {
	if err := a.process.cmd.Process.Kill(); err != nil {
		return errors.WithStack(err)
	}
	<-a.process.done
	return nil
}

// Close ends the agent and removes its key.
func (a *SSHAgent) Close() error {
	return closeProcess(a.process, a.dir)
}
