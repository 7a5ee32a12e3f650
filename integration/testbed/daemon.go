package testbed

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// DaemonOptions are how a daemon differs from one with an OCI worker on a
// folder of its own.
type DaemonOptions struct {
	Flavor Flavor
	Root   string   // of the daemon, a temporary one by default
	Args   []string // added to the command line
	Env    []string // added to the environment
	Config string   // content of buildkitd.toml
}

// Daemon is a running buildkitd.
type Daemon struct {
	Addr      string // unix://
	DebugAddr string // unix socket of the debug handlers, without scheme
	Root      string
	LogPath   string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	dir  string
}

// startTimeout is how long a daemon may take until it answers.
const startTimeout = 30 * time.Second

// StartDaemon starts a daemon and returns when it answers. It must be closed.
func StartDaemon(ctx context.Context, opt DaemonOptions) (_ *Daemon, retErr error) {
	bin, err := Binary(opt.Flavor, "buildkitd")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "graphload-daemon-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	d := &Daemon{
		Addr:      "unix://" + filepath.Join(dir, "buildkitd.sock"),
		DebugAddr: filepath.Join(dir, "debug.sock"),
		Root:      opt.Root,
		LogPath:   filepath.Join(dir, "buildkitd.log"),
		done:      make(chan struct{}),
		dir:       dir,
	}
	if d.Root == "" {
		d.Root = filepath.Join(dir, "root")
	}
	defer func() {
		if retErr != nil {
			d.Close()
		}
	}()
	config := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(config, []byte(opt.Config), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(d.LogPath)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()

	args := []string{
		"--config", config, "--root", d.Root, "--addr", d.Addr, "--debugaddr", "unix://" + d.DebugAddr,
		"--oci-worker=true", "--containerd-worker=false", "--oci-worker-net=host", "--debug",
	}
	// not CommandContext: the daemon is stopped by Close, in the order that
	// leaves nothing behind
	d.cmd = exec.Command(bin, append(args, opt.Args...)...) //nolint:noctx
	d.cmd.Env = append(os.Environ(), opt.Env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return nil, errors.WithStack(err)
	}
	go func() {
		defer close(d.done)
		d.cmd.Wait()
	}()
	return d, d.waitReady(ctx)
}

func (d *Daemon) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.Errorf("buildkitd did not answer in %s", startTimeout))
	defer cancel()
	c, err := d.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if _, err = c.Info(ctx); err == nil {
			return nil
		}
		select {
		case <-d.done:
			return errors.Errorf("buildkitd ended: %s", d.LogTail(20))
		case <-ctx.Done():
			return errors.Wrapf(context.Cause(ctx), "%s: %s", err, d.LogTail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Client connects to the daemon.
func (d *Daemon) Client(ctx context.Context) (*client.Client, error) {
	c, err := client.New(ctx, d.Addr)
	return c, errors.WithStack(err)
}

// Pid returns the process id of the daemon.
func (d *Daemon) Pid() int {
	return d.cmd.Process.Pid
}

// LogTail returns the last n lines of the log.
func (d *Daemon) LogTail(n int) string {
	dt, err := os.ReadFile(d.LogPath)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(dt)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Stop ends the process and leaves its root. It is killed when it has not
// ended after ten seconds.
func (d *Daemon) Stop() {
	if d.cmd == nil {
		return
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		d.cmd.Process.Kill()
		<-d.done
	}
}

// Close stops the daemon, unmounts what it left and removes its folders.
func (d *Daemon) Close() error {
	d.Stop()
	mounts, err := mountsBelow(d.Root)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		unix.Unmount(m, unix.MNT_DETACH)
	}
	if err := os.RemoveAll(d.Root); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.RemoveAll(d.dir))
}

// mountsBelow returns the mount points below dir, the innermost first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			out = append([]string{fields[1]}, out...)
		}
	}
	return out, errors.WithStack(sc.Err())
}

// NewDaemon starts a daemon for a test and closes it at its end. The log is
// part of the output of a test that failed.
func NewDaemon(t testing.TB, opt DaemonOptions) *Daemon {
	t.Helper()
	Require(t)
	d, err := StartDaemon(t.Context(), opt)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(fmt.Sprintf("end of the log of %s buildkitd:\n%s", opt.Flavor, d.LogTail(60)))
		}
		require.NoError(t, d.Close())
	})
	return d
}
