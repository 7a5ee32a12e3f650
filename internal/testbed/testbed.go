// Package testbed starts the real parts that end-to-end tests and the demo
// need: buildkitd as a process, unmodified clients at pinned versions, an SSH
// agent. Everything lives in temporary folders and listens on unix sockets or
// on the loopback address. Close methods leave no process, mount, cgroup or file
// behind, and no process outlives the one that started it.
package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
)

// LogsEnv is the environment variable with the folder for the logs of failed tests.
const LogsEnv = "GRAPHLOAD_LOGS"

// Flavor is a build of BuildKit: upstream's, or the one with the change.
type Flavor string

// The builds that tests and the demo compare.
const (
	Upstream  Flavor = "upstream"
	Graphload Flavor = "graphload"
)

// Flavors are both builds, upstream first.
var Flavors = []Flavor{Upstream, Graphload}

// Binary returns the path of buildkitd or buildctl, which graphload build writes to
// bin of the repository, or of dockerd or docker-proxy, which graphload engine
// writes there. GRAPHLOAD_BIN names another folder than bin.
func Binary(flavor Flavor, name string) (string, error) {
	dir := os.Getenv("GRAPHLOAD_BIN")
	if dir == "" {
		root, err := upstream.Root()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "bin")
	}
	hint := "go run ./cmd/graphload build"
	if name == "dockerd" || name == "docker-proxy" {
		hint = "go run ./cmd/graphload engine"
	}
	if flavor == Upstream {
		dir = filepath.Join(dir, "upstream")
		hint += " --unmodified"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", errors.Errorf("%s is missing: run %s", path, hint)
	}
	return path, nil
}

// Check returns an error that says what this machine lacks to run daemons.
func Check() error {
	if os.Getuid() != 0 {
		return errors.New("buildkitd with its OCI worker needs root")
	}
	for _, name := range []string{"runc", "busybox", "ssh-agent"} {
		if _, err := exec.LookPath(name); err != nil {
			return errors.Errorf("%s is not in PATH", name)
		}
	}
	return nil
}

// Programs returns the versions of the programs that the scenarios use beside
// buildx. The caller must have fetched the Docker engine.
func Programs(ctx context.Context) ([]string, error) {
	dir, err := dockerDir()
	if err != nil {
		return nil, err
	}
	programs := []string{"runc", filepath.Join(dir, "usr", "sbin", "dockerd")}
	for _, flavor := range Flavors {
		bin, err := Binary(flavor, "buildkitd")
		if err != nil {
			return nil, err
		}
		programs = append(programs, bin)
	}
	var versions []string
	for _, name := range programs {
		cmd := exec.CommandContext(ctx, name, "--version")
		cmd.Env = append(os.Environ(), dockerEnv(dir)...)
		dt, err := cmd.Output()
		if err != nil {
			return nil, errors.Wrapf(err, "%s --version", name)
		}
		first, _, _ := strings.Cut(string(dt), "\n")
		versions = append(versions, strings.TrimSpace(first))
	}
	return append(versions, "docker compose "+composeVersion), nil
}
