package testbed

import (
	"os"
	"slices"
	"sync"

	"github.com/pkg/errors"
)

var aborts struct {
	mu    sync.Mutex
	funcs []func() error
}

// OnAbort makes Abort call f. If there is nothing left to clean up, f must do
// nothing.
func OnAbort(f func() error) {
	aborts.mu.Lock()
	defer aborts.mu.Unlock()
	aborts.funcs = append(aborts.funcs, f)
}

// Abort ends and removes everything that was started and not closed, newest first.
// It is for a test binary that is interrupted, which exits without running the
// cleanups of its tests.
func Abort() {
	aborts.mu.Lock()
	defer aborts.mu.Unlock()
	for _, f := range slices.Backward(aborts.funcs) {
		f() //nolint:errcheck // go on and remove the rest
	}
}

// tempDir makes a temporary folder that Abort removes, unless it was removed
// before.
func tempDir(pattern string) (string, error) {
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		return "", errors.WithStack(err)
	}
	OnAbort(func() error { return os.RemoveAll(dir) })
	return dir, nil
}
