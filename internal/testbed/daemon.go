package testbed

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// DaemonOptions configure a daemon. By default, it has an OCI worker and keeps its
// state in a temporary folder.
type DaemonOptions struct {
	Flavor      Flavor
	Containerd  bool     // worker on a containerd for this daemon alone, see FetchDocker
	Root        string   // of the daemon, a temporary one by default
	Snapshotter string   // overlayfs by default
	Args        []string // added to the command line
	Env         []string // added to the environment
	Config      string   // content of buildkitd.toml, without the table of the worker
	OCIConfig   string   // content of the table of the worker
	Quiet       bool     // without debug messages in the log
}

// Daemon is a running buildkitd. Its steps use the network of the host. Garbage
// collection is off, because it depends on how full the disk of the machine is.
type Daemon struct {
	Flavor    Flavor
	Addr      string // unix://
	DebugAddr string // unix socket of the debug handlers, without scheme
	Root      string
	LogPath   string

	process    *process
	containerd *containerd
	cgroup     *cgroup
	dir        string
}

// startTimeout bounds the time until a daemon listens, even on a loaded machine.
const startTimeout = 2 * time.Minute

// StartDaemon starts a daemon and returns when it listens. The caller must close it.
func StartDaemon(ctx context.Context, opt DaemonOptions) (_ *Daemon, retErr error) {
	bin, err := Binary(opt.Flavor, "buildkitd")
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-daemon-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Flavor:    opt.Flavor,
		Addr:      "unix://" + filepath.Join(dir, "buildkitd.sock"),
		DebugAddr: filepath.Join(dir, "debug.sock"),
		Root:      opt.Root,
		LogPath:   filepath.Join(dir, "buildkitd.log"),
		cgroup:    newCgroup(),
		dir:       dir,
	}
	if d.Root == "" {
		d.Root = filepath.Join(dir, "root")
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Wrapf(retErr, "failed to start the %s daemon: %s", opt.Flavor, d.LogTail(20))
			d.Close()
		}
	}()
	if opt.Snapshotter == "" {
		opt.Snapshotter = "overlayfs"
	}
	worker, other := "oci", "containerd"
	if opt.Containerd {
		worker, other = other, worker
		if d.containerd, err = startContainerd(ctx, filepath.Join(dir, "containerd")); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(dir, "buildkitd.toml")
	content := opt.Config + "\n[worker." + worker + "]\ngc = false\ndefaultCgroupParent = \"" + d.cgroup.name + "\"\n" + opt.OCIConfig + "\n"
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	log, err := os.Create(d.LogPath)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer log.Close()
	ready, err := listenReady(filepath.Join(dir, "notify.sock"))
	if err != nil {
		return nil, err
	}
	defer ready.Close()

	args := slices.Concat([]string{
		"--config", config, "--root", d.Root, "--addr", d.Addr,
		"--debugaddr", "unix://" + d.DebugAddr, "--otel-socket-path", filepath.Join(dir, "otel.sock"),
		fmt.Sprintf("--%s-worker=false", other), fmt.Sprintf("--%s-worker=true", worker), fmt.Sprintf("--%s-worker-net=host", worker),
		fmt.Sprintf("--%s-worker-snapshotter=%s", worker, opt.Snapshotter), "--cdi-disabled=true", fmt.Sprintf("--debug=%t", !opt.Quiet),
	}, opt.Args)
	if d.containerd != nil {
		// containerd must see the mounts of the daemon
		args = slices.Concat([]string{"--target", strconv.Itoa(d.containerd.process.cmd.Process.Pid), "--mount", bin}, args,
			[]string{"--containerd-worker-addr", d.containerd.socket})
		bin = "nsenter"
	}
	cmd := exec.Command(bin, args...) //nolint:noctx // ended by Close
	cmd.Env = slices.Concat(os.Environ(), []string{"TMPDIR=" + tmp, "NOTIFY_SOCKET=" + ready.path}, opt.Env)
	cmd.Stdout, cmd.Stderr = log, log
	if d.containerd == nil {
		// in its own mount namespace, mounts of the daemon end with it even if it
		// is killed
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	if d.process, err = start(cmd); err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.Errorf("it did not listen within %s", startTimeout))
	defer cancel()
	select {
	case err := <-ready.ch:
		return d, err
	case <-d.process.done:
		return nil, errors.Errorf("it ended with %v", d.process.cmd.ProcessState)
	case <-ctx.Done():
		return nil, errors.WithStack(context.Cause(ctx))
	}
}

// Pid returns the process id of the daemon.
func (d *Daemon) Pid() int {
	return d.process.cmd.Process.Pid
}

// Signal sends a signal to the daemon alone.
func (d *Daemon) Signal(sig os.Signal) error {
	return errors.WithStack(d.process.cmd.Process.Signal(sig))
}

// Done returns a channel that is closed when the daemon ends.
func (d *Daemon) Done() <-chan struct{} {
	return d.process.done
}

// LogTail returns the last n lines of the log, or all of it if n is negative.
func (d *Daemon) LogTail(n int) string {
	return tail(d.LogPath, n)
}

// tail returns the last n lines of a file, or all of it if n is negative.
func tail(path string, n int) string {
	dt, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(dt)), "\n")
	if n >= 0 {
		lines = lines[max(0, len(lines)-n):]
	}
	return strings.Join(lines, "\n")
}

// SaveLog copies the log to a file that Close does not remove.
func (d *Daemon) SaveLog(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.WithStack(err)
	}
	return files.Copy(d.LogPath, path, 0o644)
}

// Stop ends the daemon and the processes that it left running, and keeps its root.
// If the daemon does not end after SIGTERM, Stop kills it and returns an error.
func (d *Daemon) Stop() error {
	err := d.process.stop()
	if d.containerd != nil {
		err = cmp.Or(err, d.containerd.process.stop())
	}
	return cmp.Or(err, d.cgroup.remove())
}

// Close stops the daemon and removes its folders, except for a root from
// DaemonOptions.
func (d *Daemon) Close() error {
	return cmp.Or(d.Stop(), errors.WithStack(os.RemoveAll(d.dir)))
}

// ready is the socket on which a daemon tells its service manager that it
// listens, see sd_notify(3).
type ready struct {
	io.Closer
	path string
	ch   chan error
}

func listenReady(path string) (*ready, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, errors.WithStack(err)
	}
	r := &ready{Closer: conn, path: path, ch: make(chan error, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				r.ch <- errors.WithStack(err)
				return
			}
			if slices.Contains(strings.Split(string(bytes.TrimSpace(buf[:n])), "\n"), "READY=1") {
				r.ch <- nil
				return
			}
		}
	}()
	return r, nil
}
