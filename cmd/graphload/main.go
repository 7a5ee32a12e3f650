// Command graphload assembles, builds, tests and compares the BuildKit that
// loads lazy solves into the graph. Run it in its repository with
// go run ./cmd/graphload.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/graphload/graphload/internal/usage"
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
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()

	app := &cli.Command{
		Name:    "graphload",
		Usage:   "BuildKit that loads lazy solves into the graph",
		Version: versionLine(),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "release", Usage: "release of BuildKit (default: the one that go.mod requires)"},
		},
	}
	for _, category := range []struct {
		name     string
		commands []*cli.Command
	}{
		{"Build", []*cli.Command{buildCommand(), buildxCommand(), engineCommand(), installCommand(), uninstallCommand(), embedCommand()}},
		{"Change", []*cli.Command{treeCommand(), seamsCommand(), patchCommand(), lintCommand()}},
		{"Release", []*cli.Command{distCommand(), auditCommand(), releasesCommand(), upgradeCommand()}},
		{"Test", []*cli.Command{
			testCommand(), demoCommand(), integrationCommand(), soakCommand(), dockerCommand(), conformanceCommand(), benchCommand(), clientsCommand(), fuzzCommand(),
		}},
	} {
		for _, c := range category.commands {
			c.Category = category.name
		}
		app.Commands = append(app.Commands, category.commands...)
	}
	usage.Strict(app)
	return app.Run(ctx, os.Args)
}

// options returns the options that the global flags select, and the flag module if
// the command has it.
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

// releaseFlag returns the release that the user has chosen, if any.
func releaseFlag(cmd *cli.Command) string {
	return cmd.Root().String("release")
}

const moduleFlagName = "module"

func moduleFlag() cli.Flag {
	return &cli.StringFlag{Name: moduleFlagName, Usage: "another module of the seam list, like buildx (default: BuildKit)"}
}

func unmodifiedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "unmodified", Usage: "upstream without any change"}
}

func noBuildFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"}
}

func outputFlag(value, usage string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: value, Usage: usage}
}

// plan plans the tree that the flags select, and writes it if the command needs it.
func plan(ctx context.Context, cmd *cli.Command, write bool) (*assemble.Tree, error) {
	opt, err := options(cmd)
	if err != nil {
		return nil, err
	}
	opt.Unmodified = cmd.Bool("unmodified")
	if write {
		return build.Tree(ctx, opt)
	}
	return assemble.Plan(ctx, opt)
}

// withoutRelease returns the help template of commands that refuse the flag release,
// the only global one.
func withoutRelease() string {
	template, _, _ := strings.Cut(cli.CommandHelpTemplate, "{{if .VisiblePersistentFlags}}")
	return template + "\n"
}

// versionLine returns the output of --version: the version of this program, and its
// default release.
func versionLine() string {
	program := "(unknown)"
	if info, ok := debug.ReadBuildInfo(); ok {
		program = info.Main.Version
	}
	root, err := upstream.Root()
	if err != nil {
		return program
	}
	release, err := upstream.DefaultVersion(root)
	if err != nil {
		return program
	}
	return fmt.Sprintf("%s for BuildKit %s", program, release)
}
