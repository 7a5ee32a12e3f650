// Command graphload assembles, builds, tests and compares the BuildKit that
// loads lazy solves into the graph. Run it in its repository with
// go run ./cmd/graphload.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "graphload:", err)
		os.Exit(1)
	}
}

func run() error {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is below nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()

	app := &cli.Command{
		Name:  "graphload",
		Usage: "BuildKit that loads lazy solves into the graph",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "release", Usage: "release of BuildKit (default: the one that go.mod requires)"},
			&cli.StringFlag{Name: "upstream", Hidden: true}, // what the flag release was called
		},
		Commands: []*cli.Command{
			treeCommand(),
			buildCommand(),
			buildxCommand(),
			seamsCommand(),
			patchCommand(),
			testCommand(),
			releasesCommand(),
			upgradeCommand(),
			lintCommand(),
			demoCommand(),
			benchCommand(),
			clientsCommand(),
			conformanceCommand(),
			integrationCommand(),
			soakCommand(),
			distCommand(),
			dockerCommand(),
			fuzzCommand(),
			auditCommand(),
			engineCommand(),
			embedCommand(),
			installCommand(),
			uninstallCommand(),
		},
	}
	return app.Run(ctx, os.Args)
}

// options returns what the global flags select, and the flag module of a command
// that has it.
func options(cmd *cli.Command) (assemble.Options, error) {
	root, err := upstream.Root()
	if err != nil {
		return assemble.Options{}, err
	}
	module, version := cmd.String(moduleFlagName), releaseFlag(cmd)
	if version == "" {
		return assemble.Default(root, module)
	}
	if module != "" {
		return assemble.Options{}, errors.Errorf("--release is one of BuildKit, not of %s", module)
	}
	return assemble.Options{Root: root, Version: version}, nil
}

// releaseFlag is the release that the user has chosen, if any.
func releaseFlag(cmd *cli.Command) string {
	return cmp.Or(cmd.Root().String("release"), cmd.Root().String("upstream"))
}

const moduleFlagName = "module"

func moduleFlag() cli.Flag {
	return &cli.StringFlag{Name: moduleFlagName, Usage: "another module of the seam list, like buildx (default: BuildKit)"}
}

func progressf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "=> "+format+"\n", args...)
}
