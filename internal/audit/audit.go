// Package audit looks for known vulnerabilities in binaries with govulncheck, and
// separates those that a maintainer has judged from new ones.
package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
	"go.yaml.in/yaml/v3"
)

// ErrNoDatabase means that the database cannot be reached, so that nothing is known
// about the binaries.
var ErrNoDatabase = errors.New("the vulnerability database cannot be reached, nothing was checked")

// govulncheck is the tool that looks for vulnerabilities.
var govulncheck = gomod.Tool{
	Module: gomod.Module{Path: "golang.org/x/vuln", Version: "v1.9.0", Sum: "h1:12VaqnI9kJfqwRoPptxoqsUhQtdfrSbdksT7X/KY/sc="},
	Pkg:    "./cmd/govulncheck",
}

// Finding is a vulnerability of a binary.
type Finding struct {
	ID      string
	Summary string
	Module  string
	Version string
	Fixed   string
	Symbol  string // the vulnerable symbol in the binary, if known
	Binary  string // path
	Verdict string // why it is accepted, empty if it has not been judged
}

// Binaries returns the findings in binaries, with the database of the given name.
func Binaries(ctx context.Context, name string, paths []string) (findings []Finding, _ error) {
	db, err := Open(ctx, name)
	if err != nil {
		return nil, err
	}
	progress.Printf("database %s", db)
	tool, err := govulncheck.Install(ctx)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		progress.Printf("govulncheck %s", path)
		found, err := binary(ctx, tool, db, path)
		if err != nil {
			return nil, err
		}
		findings = append(findings, found...)
	}
	return findings, nil
}

// Report writes findings in a number of binaries as a table, with paths below root.
func Report(w io.Writer, root string, findings []Finding, bins int) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintf(w, "no known vulnerabilities in %d binaries\n", bins)
		return errors.WithStack(err)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "BINARY\tID\tMODULE\tFIXED\tSYMBOL\tVERDICT\tSUMMARY")
	for _, f := range findings {
		path, err := filepath.Rel(root, f.Binary)
		if err != nil {
			path = f.Binary
		}
		fmt.Fprintf(tw, "%s\t%s\t%s %s\t%s\t%s\t%s\t%s\n", path, f.ID, f.Module, f.Version, f.Fixed, f.Symbol, cmp.Or(f.Verdict, "none"), f.Summary)
	}
	return errors.WithStack(tw.Flush())
}

// binary returns the findings in one binary.
func binary(ctx context.Context, tool, db, path string) ([]Finding, error) {
	cmd := exec.CommandContext(ctx, tool, "-mode=binary", "-format=json", "-db="+db, path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, err := cmd.Output()
	if err != nil {
		return nil, errors.Wrapf(err, "govulncheck %s: %s", path, bytes.TrimSpace(stderr.Bytes()))
	}
	return parse(bytes.NewReader(dt), path)
}

// parse reads messages of govulncheck, which reports a vulnerability several times, with
// increasing detail. parse keeps the most detailed report.
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

// Verdicts are the findings that a maintainer has accepted, with the reason.
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
