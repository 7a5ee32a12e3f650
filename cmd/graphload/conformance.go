package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/conformance"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func conformanceCommand() *cli.Command {
	return &cli.Command{
		Name:  "conformance",
		Usage: "run upstream's own tests with both daemons and compare each test",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "suite", Usage: "folders of packages: " + strings.Join(conformance.Suites, ", ") + " (default: all)"},
			&cli.StringFlag{Name: "run", Usage: "only tests that match, as with go test -run"},
			&cli.StringFlag{Name: "worker", Value: "oci", Usage: "worker of the daemons: " + strings.Join(conformance.Workers, " or ")},
			&cli.StringFlag{Name: "shard", Usage: "run part `I/N` of the tests"},
			&cli.IntFlag{Name: "retries", Value: 3, Usage: "how often tests that differ are run again"},
			&cli.DurationFlag{Name: "timeout", Value: 2 * time.Hour, Usage: "for the tests of one package"},
			&cli.BoolFlag{Name: "race", Usage: "use daemons with the race detector"},
			&cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "folder for the reports (default: one in build/conformance, for what is selected by the other flags)"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			if os.Getuid() != 0 {
				return errors.New("the daemons that are tested need root")
			}
			pkgs := maps.Clone(debianPackages)
			switch worker := cmd.String("worker"); {
			case !slices.Contains(conformance.Workers, worker):
				return errors.Errorf("no worker %q, there are: %s", worker, strings.Join(conformance.Workers, ", "))
			case worker == "containerd":
				maps.Copy(pkgs, containerdPackages)
			}
			c := conformance.Options{
				Run:      cmd.String("run"),
				Worker:   cmd.String("worker"),
				Retries:  cmd.Int("retries"),
				Timeout:  cmd.Duration("timeout"),
				Output:   cmd.String("output"),
				Progress: progressf,
			}
			if c.Suites, err = conformance.Select(cmd.StringSlice("suite")); err != nil {
				return err
			}
			if c.Shard, c.Shards, err = parseShard(cmd.String("shard")); err != nil {
				return err
			}
			if c.Shards > 1 && c.Run != "" {
				return errors.New("--shard and --run exclude each other")
			}
			c.Race = cmd.Bool("race")
			if c.Output == "" {
				c.Output = filepath.Join(opt.Root, "build", "conformance", conformanceName(opt.Version, c))
			}
			if err := conformance.Clear(c.Output); err != nil {
				return err
			}
			if err := installMissing(ctx, pkgs); err != nil {
				return err
			}
			if c.Registry, err = testbed.RegistryBinary(ctx); err != nil {
				return err
			}
			for flavor := range c.Trees {
				opt.Unmodified = flavor == conformance.Upstream
				if c.Trees[flavor], err = writeTree(ctx, opt); err != nil {
					return err
				}
				if c.Bin[flavor], err = binDir(opt, c.Race); err != nil {
					return err
				}
				if !cmd.Bool("no-build") {
					if _, err := buildBinaries(ctx, opt, c.Race); err != nil {
						return err
					}
				}
			}
			report, err := conformance.Run(ctx, c)
			if err != nil {
				return err
			}
			fmt.Print(report.Markdown())
			failures := report.Void
			if n := len(report.Regressions()); n > 0 {
				failures = append(failures, fmt.Sprintf("%d tests pass with upstream's daemon only", n))
			}
			if n := len(report.Races.New); n > 0 {
				failures = append(failures, fmt.Sprintf("%d data races that upstream's daemon does not have", n))
			}
			if len(failures) > 0 {
				return errors.Errorf("%s: see %s", strings.Join(failures, "; "), c.Output)
			}
			return nil
		},
	}
}

// containerdPackages are what the harness starts beside buildkitd for its
// containerd worker.
var containerdPackages = map[string]string{
	"containerd":              "containerd",
	"containerd-shim-runc-v2": "containerd",
}

// conformanceName names the folder of the reports, so that runs that differ do not
// replace each other's.
func conformanceName(version string, c conformance.Options) string {
	parts := []string{version, c.Worker}
	if c.Race {
		parts = append(parts, "race")
	}
	if len(c.Suites) < len(conformance.Suites) {
		parts = append(parts, c.Suites...)
	}
	if c.Run != "" {
		parts = append(parts, c.Run)
	}
	if c.Shards > 1 {
		parts = append(parts, fmt.Sprintf("%dof%d", c.Shard, c.Shards))
	}
	name := unfit.ReplaceAllString(strings.Join(parts, "-"), "_")
	return name[:min(len(name), maxName)]
}

// unfit is what the name of a folder had better not have, and maxName how long
// one can be.
var unfit = regexp.MustCompile(`[^\w.,+-]+`)

const maxName = 200

// parseShard parses I/N.
func parseShard(s string) (shard, shards int, err error) {
	if s == "" {
		return 1, 1, nil
	}
	i, n, ok := strings.Cut(s, "/")
	if ok {
		shard, err = strconv.Atoi(i)
	}
	if ok && err == nil {
		shards, err = strconv.Atoi(n)
	}
	if !ok || err != nil || shard < 1 || shard > shards {
		return 0, 0, errors.Errorf("shard %q is not I/N with 1 <= I <= N", s)
	}
	return shard, shards, nil
}
