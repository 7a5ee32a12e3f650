package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// strict has every mistake in a call end with one line. Otherwise the help comes with
// it, and arguments that no command reads are ignored.
func strict(app *cli.Command) {
	app.OnUsageError = usageError
	app.Action = func(_ context.Context, cmd *cli.Command) error {
		if cmd.Args().Present() {
			return errors.Errorf("no command %q: graphload --help lists them", cmd.Args().First())
		}
		return cli.ShowRootCommandHelp(cmd)
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
		if c.ArgsUsage != "" {
			continue
		}
		action := c.Action
		c.Action = func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return errors.Errorf("%s takes no arguments, not %q", cmd.Name, cmd.Args().Slice())
			}
			return action(ctx, cmd)
		}
	}
}

func usageError(_ context.Context, _ *cli.Command, err error, _ bool) error {
	return err
}

// atLeast is for flags whose value is a number of something.
func atLeast(least int) func(int) error {
	return func(n int) error {
		if n < least {
			return errors.Errorf("it must be at least %d", least)
		}
		return nil
	}
}

// versionLine is what --version says: the version of this program, and the release
// that it is for by default.
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
