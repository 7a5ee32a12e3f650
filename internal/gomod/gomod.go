// Package gomod fetches modules with the go command, outside of any module
// whose go.mod could replace them.
package gomod

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"time"

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
	d, err := m.download(ctx)
	return d.Dir, err
}

// Time returns when the version was made. It downloads the module.
func (m Module) Time(ctx context.Context) (time.Time, error) {
	d, err := m.download(ctx)
	if err != nil {
		return time.Time{}, err
	}
	dt, err := os.ReadFile(d.Info)
	if err != nil {
		return time.Time{}, errors.WithStack(err)
	}
	var info struct{ Time time.Time }
	err = json.Unmarshal(dt, &info)
	return info.Time, errors.WithStack(err)
}

// download is what the go command says of a module in the module cache.
type download struct {
	Dir, Info, Sum, Error string
}

func (m Module) download(ctx context.Context) (download, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.Path+"@"+m.Version)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, runErr := cmd.Output()
	var d download
	if err := json.Unmarshal(dt, &d); err != nil {
		if runErr == nil {
			runErr = err
		}
		return download{}, errors.Wrapf(runErr, "go mod download: %s", bytes.TrimSpace(stderr.Bytes()))
	}
	if d.Error != "" {
		return download{}, errors.New(d.Error)
	}
	if m.Sum != "" && d.Sum != m.Sum {
		return download{}, errors.Errorf("checksum of %s %s is %s, not %s", m.Path, m.Version, d.Sum, m.Sum)
	}
	return d, nil
}
