// Package usage checks calls of commands, such that a mistake ends the call with one
// line, before the command installs or changes anything.
package usage

import (
	"context"
	"regexp"
	"time"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
	"golang.org/x/mod/semver"
)

// Strict makes every mistake in a call end it with one line. By default, the cli package
// also prints the help, and ignores arguments that no command reads.
func Strict(app *cli.Command) {
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

// AtLeast returns the validator of flags whose value is a number of least or more.
func AtLeast(least int) func(int) error {
	return func(n int) error {
		if n < least {
			return errors.Errorf("it must be at least %d", least)
		}
		return nil
	}
}

// MoreThanZero validates flags whose value is a duration.
func MoreThanZero(d time.Duration) error {
	if d <= 0 {
		return errors.New("it must be more than 0")
	}
	return nil
}

// Expression validates flags whose value selects tests, as with go test -run.
func Expression(s string) error {
	_, err := regexp.Compile(s)
	return errors.WithStack(err)
}

// Snapshot validates flags whose value is a state of Debian's archives.
func Snapshot(s string) error {
	if _, err := time.Parse("20060102T150405Z", s); err != nil {
		return errors.New("write it as 20261123T000000Z")
	}
	return nil
}

// CheckRelease returns an error if the go command would read the version as a query.
func CheckRelease(version string) error {
	if semver.Canonical(version) != version {
		return errors.Errorf("%s is not a release: use vX.Y.Z", version)
	}
	return nil
}
