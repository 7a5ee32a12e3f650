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

// OnAbort has Abort call f, which must do nothing when it has nothing to do
// any more.
func OnAbort(f func() error) {
	aborts.mu.Lock()
	defer aborts.mu.Unlock()
	aborts.funcs = append(aborts.funcs, f)
}

// Abort ends and removes everything that has been started and not been closed,
// the newest first. It is for a test binary that is interrupted: that ends
// without the cleanups of its tests.
func Abort() {
	aborts.mu.Lock()
	defer aborts.mu.Unlock()
	for _, f := range slices.Backward(aborts.funcs) {
		f() //nolint:errcheck // the rest can be removed all the same
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
