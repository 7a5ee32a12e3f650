package main

import (
	"context"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
	"golang.org/x/mod/semver"
)

// strict has every mistake in a call end with one line. Otherwise the help comes with
// it, and arguments that no command reads are ignored.
func strict(app *cli.Command) {
	app.OnUsageError = usageError
	app.Action = func(_ context.Context, cmd *cli.Command) error {
		if cmd.Args().Present() {
			return noCommand(cmd.Args().First())
		}
		return cli.ShowRootCommandHelp(cmd)
	}
	cli.ShowCommandHelp = func(ctx context.Context, cmd *cli.Command, name string) error {
		if cmd.Command(name) == nil {
			return noCommand(name)
		}
		return cli.DefaultShowCommandHelp(ctx, cmd, name)
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

func noCommand(name string) error {
	return errors.Errorf("no command %q: graphload --help lists them", name)
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

// moreThanZero is for flags whose value is a time.
func moreThanZero(d time.Duration) error {
	if d <= 0 {
		return errors.New("it must be more than 0")
	}
	return nil
}

// expression is for flags whose value selects tests, as with go test -run.
func expression(s string) error {
	_, err := regexp.Compile(s)
	return errors.WithStack(err)
}

// snapshot is for flags whose value is a state of Debian's archives.
func snapshot(s string) error {
	if _, err := time.Parse("20060102T150405Z", s); err != nil {
		return errors.New("write it as 20261123T000000Z")
	}
	return nil
}

// checkRelease returns an error if the go command would take the version for a query.
func checkRelease(version string) error {
	if semver.Canonical(version) != version {
		return errors.Errorf("%s is not a release: use vX.Y.Z", version)
	}
	return nil
}

// withoutRelease is the help of commands that refuse the flag release, which is the
// only global one.
func withoutRelease() string {
	template, _, _ := strings.Cut(cli.CommandHelpTemplate, "{{if .VisiblePersistentFlags}}")
	return template + "\n"
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
