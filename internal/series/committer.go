package series

import (
	"context"
	"os/exec"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// Committer returns the person who signs the series off, and the date of the change.
func Committer(ctx context.Context, root string) (Person, time.Time, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = root
		dt, err := cmd.Output()
		return strings.TrimSpace(string(dt)), errors.Wrapf(err, "git %s", strings.Join(args, " "))
	}
	var p Person
	var err error
	if p.Name, err = git("config", "user.name"); err == nil {
		p.Email, err = git("config", "user.email")
	}
	if err != nil || p.Name == "" || p.Email == "" {
		return p, time.Time{}, errors.New("the series is signed off by whom git config says: set user.name and user.email")
	}
	stamp, err := git("log", "-1", "--format=%aI")
	if err != nil {
		return p, time.Time{}, err
	}
	date, err := time.Parse(time.RFC3339, stamp)
	return p, date, errors.WithStack(err)
}
