package testbed

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// stopTimeout bounds the time that a process takes to end after SIGTERM, even on a
// loaded machine.
const stopTimeout = time.Minute

// process is a command that dies with this one.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the command ends
	err  error         // how it ended, once done is closed
}

// start runs cmd in its own process group, so that Ctrl-C in a terminal reaches only
// the process that knows how to stop cmd.
func start(cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig refers to the parent thread, not to the process
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Wrapf(err, "failed to start %s", cmd.Path)
	}
	OnAbort(p.stop)
	return p, nil
}

// output runs cmd and returns its output. An error includes the output too.
func output(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	<-p.done
	return out.Bytes(), errors.Wrapf(p.err, "%s %s: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), bytes.TrimSpace(out.Bytes()))
}

// awaitInterval is the time between two checks whether a process is ready.
const awaitInterval = 20 * time.Millisecond

// await calls ready until it returns no error. It returns an error if the process
// ends before that, or is not ready in time.
func (p *process) await(ctx context.Context, timeout time.Duration, ready func(context.Context) error) error {
	name := filepath.Base(p.cmd.Path)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errors.Errorf("%s was not ready within %s", name, timeout))
	defer cancel()
	for {
		if ready(ctx) == nil {
			return nil
		}
		select {
		case <-p.done:
			return errors.Errorf("%s ended with %v", name, p.cmd.ProcessState)
		case <-ctx.Done():
			return errors.WithStack(context.Cause(ctx))
		case <-time.After(awaitInterval):
		}
	}
}

// stop ends the process, if there is one, with SIGTERM. If that takes too long, it
// sends SIGKILL and returns an error.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return errors.WithStack(err)
		}
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
	}
	p.cmd.Process.Kill()
	<-p.done
	return errors.Errorf("%s did not end within %s of SIGTERM", p.cmd.Path, stopTimeout)
}

// closeProcess stops a process, if it was started, and removes its folder.
func closeProcess(p *process, dir string) error {
	return cmp.Or(p.stop(), errors.WithStack(os.RemoveAll(dir)))
}

// command is exec.CommandContext for a client: when ctx is done, it interrupts the
// client as Ctrl-C does, and kills it if that does not end it.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = stopTimeout
	return cmd
}

// CloseLast closes c, and sets *err to the error of Close unless it is set already.
func CloseLast(c io.Closer, err *error) {
	*err = cmp.Or(*err, c.Close())
}
