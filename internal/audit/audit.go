// Package audit looks for known vulnerabilities in binaries with govulncheck,
// and tells those that somebody has judged from those that are new.
package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"go.yaml.in/yaml/v3"
)

// ErrNoDatabase is returned when the database cannot be reached: then nothing is
// known about the binaries.
var ErrNoDatabase = errors.New("the vulnerability database cannot be reached, nothing was checked")

var govulncheck = gomod.Module{Path: "golang.org/x/vuln", Version: "v1.9.0", Sum: "h1:12VaqnI9kJfqwRoPptxoqsUhQtdfrSbdksT7X/KY/sc="}

// Finding is a vulnerability of a binary.
type Finding struct {
	ID      string
	Summary string
	Module  string
	Version string
	Fixed   string
	Symbol  string // that is in the binary, if that is known
	Binary  string // path
	Verdict string // why it is accepted, empty if nobody has judged it
}

// Install returns the path of govulncheck, which is built when it is used for
// the first time.
func Install(ctx context.Context) (string, error) {
	path, err := upstream.CacheDir("tools", "govulncheck-"+govulncheck.Version)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	src, err := govulncheck.Download(ctx)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	return path, gomod.Build(ctx, src, "./cmd/govulncheck", path, "", []string{"CGO_ENABLED=0", "GOFLAGS="})
}

// Binary looks into a binary.
func Binary(ctx context.Context, tool, db, path string) ([]Finding, error) {
	cmd := exec.CommandContext(ctx, tool, "-mode=binary", "-format=json", "-db="+db, path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, err := cmd.Output()
	if err != nil {
		return nil, errors.Wrapf(err, "govulncheck %s: %s", path, bytes.TrimSpace(stderr.Bytes()))
	}
	return parse(bytes.NewReader(dt), path)
}

// parse reads messages of govulncheck. A vulnerability is reported several
// times, with more and more detail; the most detailed one counts.
func parse(r io.Reader, binary string) ([]Finding, error) {
	type frame struct{ Module, Version, Package, Function, Receiver string }
	summaries := map[string]string{}
	found := map[string]Finding{}
	for dec := json.NewDecoder(r); ; {
		var msg struct {
			OSV *struct {
				ID, Summary string
			}
			Finding *struct {
				OSV          string
				FixedVersion string `json:"fixed_version"`
				Trace        []frame
			}
		}
		if err := dec.Decode(&msg); err == io.EOF {
			break
		} else if err != nil {
			return nil, errors.Wrap(err, "output of govulncheck")
		}
		if msg.OSV != nil {
			summaries[msg.OSV.ID] = msg.OSV.Summary
		}
		if f := msg.Finding; f != nil && len(f.Trace) > 0 {
			top := f.Trace[0]
			finding := Finding{ID: f.OSV, Module: top.Module, Version: top.Version, Fixed: f.FixedVersion, Binary: binary}
			if top.Function != "" {
				finding.Symbol = top.Package + "." + top.Function
				if top.Receiver != "" {
					finding.Symbol = top.Package + "." + top.Receiver + "." + top.Function
				}
			}
			if old, ok := found[f.OSV]; !ok || old.Symbol == "" {
				found[f.OSV] = finding
			}
		}
	}
	var out []Finding
	for _, f := range found {
		f.Summary = summaries[f.ID]
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Verdicts are the findings that somebody has judged, with the reason.
type Verdicts map[string]string

// LoadVerdicts reads a file with verdicts.
func LoadVerdicts(path string) (Verdicts, error) {
	dt, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	v := Verdicts{}
	return v, errors.Wrapf(yaml.Unmarshal(dt, &v), "%s", path)
}

// Judge sets the verdicts of findings and returns how many have none.
func (v Verdicts) Judge(findings []Finding) (open int) {
	for i := range findings {
		findings[i].Verdict = v[findings[i].ID]
		if findings[i].Verdict == "" {
			open++
		}
	}
	return open
}
