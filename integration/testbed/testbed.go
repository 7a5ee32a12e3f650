// Package testbed starts the real parts that end-to-end tests and the demo
// need: buildkitd as a process, unmodified clients at pinned versions, an SSH
// agent. Everything lives in temporary folders, listens on unix sockets, and is
// gone when it is closed.
package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// Flavor tells one build of BuildKit from the other.
type Flavor string

const (
	Upstream  Flavor = "upstream"
	Graphload Flavor = "graphload"
)

// Flavors are both builds, upstream first.
var Flavors = []Flavor{Upstream, Graphload}

// Binary returns the path of buildkitd or buildctl as graphload build puts it
// into the repository, or as GRAPHLOAD_BIN names the folder.
func Binary(flavor Flavor, name string) (string, error) {
	dir := os.Getenv("GRAPHLOAD_BIN")
	if dir == "" {
		gomod, err := exec.Command("go", "env", "GOMOD").Output() //nolint:noctx // answers at once
		if err != nil {
			return "", errors.Wrap(err, "failed to find the repository")
		}
		dir = filepath.Join(filepath.Dir(string(gomod)), "bin")
	}
	hint := "go run ./cmd/graphload build"
	if flavor == Upstream {
		dir = filepath.Join(dir, "upstream")
		hint += " --pristine"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", errors.Errorf("%s is missing: run %s", path, hint)
	}
	return path, nil
}

// Require skips the test with the reason when the machine cannot run it, and
// fails it in CI, where it must.
func Require(t testing.TB) {
	t.Helper()
	if err := check(); err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}
		t.Skip(err)
	}
}

func check() error {
	if os.Getuid() != 0 {
		return errors.New("end-to-end tests need root")
	}
	for _, name := range []string{"runc", "busybox", "ssh-agent"} {
		if _, err := exec.LookPath(name); err != nil {
			return errors.Errorf("end-to-end tests need %s in PATH", name)
		}
	}
	return nil
}

// run runs a command to its end. Its output is part of the error.
func run(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	dt, err := cmd.CombinedOutput()
	return dt, errors.Wrapf(err, "%s %v: %s", filepath.Base(name), args, dt)
}
