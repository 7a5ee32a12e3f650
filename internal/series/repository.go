package series

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// Repository is a git repository whose only commit before the series is a release.
type Repository struct {
	Dir string
}

// Import creates a repository from the source of a release in dir, which must be empty
// or missing.
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
		target := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 { // a checkout can have links, a module cannot
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		}
		dt, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, dt, info.Mode().Perm()|0o200)
	})
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return r, r.init(ctx, message)
}

// init creates the repository and commits the files in its folder.
func (r *Repository) init(ctx context.Context, message string) error {
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
			return err
		}
	}
	return nil
}

// write writes files, by slash-separated path.
func (r *Repository) write(files map[string][]byte) error {
	for rel, dt := range files {
		path := filepath.Join(r.Dir, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return errors.WithStack(err)
		}
		if err := os.WriteFile(path, dt, 0o644); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

// commit commits the files in the folder, as the author, who signs the commit off.
func (r *Repository) commit(ctx context.Context, author Person, date time.Time, message string) error {
	if _, err := r.Git(ctx, nil, "add", "--all", "--force"); err != nil {
		return err
	}
	_, err := r.Git(ctx, []byte(message), "-c", "user.name="+author.Name, "-c", "user.email="+author.Email,
		"commit", "--quiet", "--signoff", "--date="+date.Format(time.RFC3339), "--file=-")
	return err
}

// Apply commits a patch with git am.
func (r *Repository) Apply(ctx context.Context, p Patch) error {
	_, err := r.Git(ctx, p.Mail, "am", "--quiet")
	return errors.Wrap(err, p.Name)
}

// Git runs git in the repository and returns its output. Hooks, and the configuration
// and environment of the user, have no effect.
func (r *Repository) Git(ctx context.Context, stdin []byte, args ...string) (string, error) {
	args = append([]string{"-c", "core.hooksPath=" + os.DevNull}, args...)
	return git(ctx, r.Dir, stdin, []string{"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_SYSTEM=" + os.DevNull}, args...)
}

// git runs git in dir without the variables that git sets for hooks and that users set
// for their commits. It keeps the variables that say where git's configuration is.
func git(ctx context.Context, dir string, stdin []byte, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GIT_") || strings.HasPrefix(v, "GIT_CONFIG") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", errors.Wrapf(err, "git %s: %s", strings.Join(args, " "), strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}
