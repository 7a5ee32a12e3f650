package gomod

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// abortTimeout is how long tests that are interrupted may take to end what they
// started.
const abortTimeout = 2 * time.Minute

// Command returns a go command that runs in dir. When ctx is done it is
// interrupted, and with it what it runs: the go command itself would leave
// tests alone.
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
