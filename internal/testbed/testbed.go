// Package testbed starts the real parts that end-to-end tests and the demo
// need: buildkitd as a process, unmodified clients at pinned versions, an SSH
// agent. Everything lives in temporary folders and listens on unix sockets or
// on the loopback address. What is closed leaves no process, mount, cgroup or
// file behind, and nothing outlives the process that started it.
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

// LogsEnv is the environment variable that names the folder for the logs of
// tests that fail.
const LogsEnv = "GRAPHLOAD_LOGS"

// Flavor tells one build of BuildKit from the other.
type Flavor string

// The builds that are compared.
const (
	Upstream  Flavor = "upstream"
	Graphload Flavor = "graphload"
)

// Flavors are both builds, upstream first.
var Flavors = []Flavor{Upstream, Graphload}

// Binary returns the path of buildkitd or buildctl as graphload build puts it
// into bin of the repository, or into the folder that GRAPHLOAD_BIN names, and of
// dockerd or docker-proxy as graphload engine does.
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

// Programs returns the versions of what the scenarios run on, beside buildx. The Docker
// engine must have been fetched.
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
