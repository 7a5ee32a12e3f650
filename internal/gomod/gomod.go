// Package gomod fetches modules with the go command, outside of any module
// whose go.mod could replace them.
package gomod

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"

	"github.com/pkg/errors"
)

// Module is a module at one version.
type Module struct {
	Path    string
	Version string // or a query, as latest
	Sum     string // h1: checksum, as in go.sum; empty to leave it to the go command
}

// PURL returns the package URL of the module.
func (m Module) PURL() string {
	return "pkg:golang/" + m.Path + "@" + m.Version
}

// Download returns the folder of the module in the module cache. A source with
// another checksum is an error.
func (m Module) Download(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.Path+"@"+m.Version)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, runErr := cmd.Output()
	var mod struct {
		Dir, Sum, Error string
	}
	if err := json.Unmarshal(dt, &mod); err != nil {
		if runErr == nil {
			runErr = err
		}
		return "", errors.Wrapf(runErr, "go mod download: %s", bytes.TrimSpace(stderr.Bytes()))
	}
	if mod.Error != "" {
		return "", errors.New(mod.Error)
	}
	if m.Sum != "" && mod.Sum != m.Sum {
		return "", errors.Errorf("checksum of %s %s is %s, not %s", m.Path, m.Version, mod.Sum, m.Sum)
	}
	return mod.Dir, nil
}
