package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/audit"
	"github.com/graphload/graphload/internal/release"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// Exit codes of graphload audit, beside 1 for anything else.
const (
	exitFindings   = 3
	exitNoDatabase = 4
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name:  "audit",
		Usage: "look for known vulnerabilities in the binaries that are shipped",
		Description: fmt.Sprintf("The exit code is %d when there are findings without a verdict in packaging/verdicts.yaml,\n"+
			"and %d when the database cannot be reached, in which case nothing was checked.", exitFindings, exitNoDatabase),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "db", Value: audit.DefaultDB, Usage: "database: a module with a version, or a URL, file:///dir for one in a folder"},
			&cli.StringSliceFlag{Name: "binary", Usage: "binaries (default: those of graphload dist and graphload build)"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			verdicts, err := audit.LoadVerdicts(filepath.Join(opt.Root, "packaging", "verdicts.yaml"))
			if err != nil {
				return err
			}
			bins := cmd.StringSlice("binary")
			if len(bins) == 0 {
				if bins, err = shippedBinaries(opt.Root); err != nil {
					return err
				}
			}
			db, err := audit.Open(ctx, cmd.String("db"))
			if err != nil {
				return cli.Exit(fmt.Sprintf("graphload: audit: %s: %v", cmd.String("db"), err), exitNoDatabase)
			}
			progressf("database %s", db)
			progressf("building govulncheck, if it is not there")
			tool, err := audit.Install(ctx)
			if err != nil {
				return err
			}
			var findings []audit.Finding
			for _, bin := range bins {
				progressf("govulncheck %s", bin)
				found, err := audit.Binary(ctx, tool, db, bin)
				if err != nil {
					return err
				}
				findings = append(findings, found...)
			}
			open := verdicts.Judge(findings)
			if err := reportFindings(opt.Root, findings, len(bins)); err != nil {
				return err
			}
			if open > 0 {
				return cli.Exit(fmt.Sprintf("graphload: audit: %d findings without a verdict", open), exitFindings)
			}
			return nil
		},
	}
}

// shippedBinaries are the binaries of the last dist, or of the last build.
func shippedBinaries(root string) (bins []string, _ error) {
	var patterns []string
	for _, arch := range slices.Sorted(maps.Keys(release.Architectures)) {
		patterns = append(patterns, filepath.Join(root, "build", "dist", "context", arch, "bin", "*"))
	}
	for _, patterns := range [][]string{patterns, {filepath.Join(root, "bin", "build*")}} {
		for _, pattern := range patterns {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, errors.WithStack(err)
			}
			bins = append(bins, found...)
		}
		if len(bins) > 0 {
			return bins, nil
		}
	}
	return nil, errors.New("there are no binaries: run graphload dist, or graphload build")
}

func reportFindings(root string, findings []audit.Finding, bins int) error {
	if len(findings) == 0 {
		_, err := fmt.Printf("no known vulnerabilities in %d binaries\n", bins)
		return errors.WithStack(err)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "BINARY\tID\tMODULE\tFIXED\tSYMBOL\tVERDICT\tSUMMARY")
	for _, f := range findings {
		verdict := f.Verdict
		if verdict == "" {
			verdict = "none"
		}
		binary, err := filepath.Rel(root, f.Binary)
		if err != nil {
			binary = f.Binary
		}
		fmt.Fprintf(tw, "%s\t%s\t%s %s\t%s\t%s\t%s\t%s\n", binary, f.ID, f.Module, f.Version, f.Fixed, f.Symbol, verdict, f.Summary)
	}
	return errors.WithStack(tw.Flush())
}
