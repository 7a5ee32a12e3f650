package series

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// Repository is a git repository that has a release as its only commit before the
// series.
type Repository struct {
	Dir string
}

// Import creates a repository in dir, which must be empty or not there, from
// the source of a release.
func Import(ctx context.Context, dir, source, message string) (*Repository, error) {
	r := &Repository{Dir: dir}
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		dt, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		target := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, dt, info.Mode().Perm()|0o200)
	})
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, args := range [][]string{
		{"init", "--quiet"},
		{"config", "user.name", "import"},
		{"config", "user.email", "import@localhost"},
		{"config", "commit.gpgsign", "false"},
		{"config", "core.autocrlf", "false"},
		{"config", "gc.auto", "0"},
		{"add", "--all", "--force"},
		{"commit", "--quiet", "-m", message},
	} {
		if _, err := r.Git(ctx, nil, args...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Apply commits a patch with git am.
func (r *Repository) Apply(ctx context.Context, p Patch) error {
	_, err := r.Git(ctx, p.Mail, "am", "--quiet")
	return errors.Wrap(err, p.Name)
}

// Git runs git in the repository and returns what it prints. Hooks and the
// configuration of the user have no effect.
func (r *Repository) Git(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.hooksPath=" + os.DevNull}, args...)...)
	cmd.Dir = r.Dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", errors.Wrapf(err, "git %s: %s", strings.Join(args, " "), strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}
