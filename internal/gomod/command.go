package gomod

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// abortTimeout bounds the time that interrupted tests take to stop the processes that
// they started.
const abortTimeout = 2 * time.Minute

// Command returns a go command that runs in dir. When ctx is done, it interrupts the go
// command and the processes that this runs, because the go command alone would not pass
// the signal on to tests.
func Command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	// Ctrl-C in a terminal reaches only the process that ends ctx
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = abortTimeout
	return cmd
}
