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

// Source is a module in the module cache. Callers must not write to it.
type Source struct {
	Version, Dir, Sum string

	Info, Error string // for this package alone
}

// Download returns the folder of the module in the module cache. It returns an error if
// the source has another checksum.
func (m Module) Download(ctx context.Context) (string, error) {
	s, err := m.Fetch(ctx)
	return s.Dir, err
}

// Time returns the time of the version. It downloads the module.
func (m Module) Time(ctx context.Context) (time.Time, error) {
	s, err := m.Fetch(ctx)
	if err != nil {
		return time.Time{}, err
	}
	dt, err := os.ReadFile(s.Info)
	if err != nil {
		return time.Time{}, errors.WithStack(err)
	}
	var info struct{ Time time.Time }
	err = json.Unmarshal(dt, &info)
	return info.Time, errors.WithStack(err)
}

// Fetch downloads the module with the go command, or finds it in the module cache. It
// returns an error if the source has another checksum.
func (m Module) Fetch(ctx context.Context) (Source, error) {
	name := m.Path + "@" + m.Version
	goCmd, err := exec.LookPath("go")
	if err != nil {
		return Source{}, errors.Wrapf(err, "the go command is needed to fetch %s: install Go 1.26 or add it to PATH", m.Path)
	}
	cmd := exec.CommandContext(ctx, goCmd, "mod", "download", "-json", name)
	cmd.Dir = os.TempDir() // not in a module whose go.mod could replace it
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, runErr := cmd.Output()
	var s Source
	if err := json.Unmarshal(dt, &s); err != nil {
		if runErr == nil {
			runErr = err
		}
		return Source{}, errors.Wrapf(runErr, "failed to fetch %s: %s", name, bytes.TrimSpace(stderr.Bytes()))
	}
	if s.Error != "" {
		return Source{}, errors.Errorf("failed to fetch %s: %s", name, s.Error)
	}
	if m.Sum != "" && s.Sum != m.Sum {
		return Source{}, errors.Errorf("checksum of %s is %s, but %s is recorded: clean the module cache, and compare the two sources before you change the record", name, s.Sum, m.Sum)
	}
	return s, nil
}
