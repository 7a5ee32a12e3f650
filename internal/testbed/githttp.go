package testbed

import (
	"cmp"
	"context"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// GitServer serves a git repository over http with git http-backend.
type GitServer struct {
	URL    string // of the repository
	Commit string // the last one

	server *httpServer
	dir    string
}

// StartGitServer serves a repository with one commit of the given files, by path, on
// branch main. Users send their token as the password, as BuildKit does with
// GIT_AUTH_TOKEN. The caller must close the server.
func StartGitServer(ctx context.Context, files map[string]string, users Users) (_ *GitServer, retErr error) {
	dir, err := tempDir("graphload-git-")
	if err != nil {
		return nil, err
	}
	g := &GitServer{dir: dir}
	defer func() {
		if retErr != nil {
			g.Close()
		}
	}()
	if err := os.Mkdir(g.work(), 0o755); err != nil {
		return nil, errors.WithStack(err)
	}
	if _, err := g.git(ctx, "init", "-q", "-b", "main"); err != nil {
		return nil, err
	}
	if err := g.commit(ctx, files); err != nil {
		return nil, err
	}
	if _, err := g.git(ctx, "clone", "-q", "--bare", ".", g.repo()); err != nil {
		return nil, err
	}
	execPath, err := g.git(ctx, "--exec-path")
	if err != nil {
		return nil, err
	}
	handler := &cgi.Handler{
		Path: filepath.Join(execPath, "git-http-backend"),
		Dir:  dir,
		// git looks for settings in HOME, which has none
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Join(dir, "repos"), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
	}
	// like GitHub, the server does not tell users which repositories others have
	if g.server, err = serveHTTP(users.protect(handler, http.StatusNotFound)); err != nil {
		return nil, err
	}
	g.URL = g.server.URL + "/repo.git"
	return g, nil
}

// Private returns a new URL of the repository, which the server serves only to the
// given users.
func (g *GitServer) Private(users ...string) string {
	return g.server.URL + private("/repo.git", users)
}

// Requests returns the requests received over http since the previous call.
func (g *GitServer) Requests() []Request {
	return g.server.Requests()
}

func (g *GitServer) work() string {
	return filepath.Join(g.dir, "work")
}

func (g *GitServer) repo() string {
	return filepath.Join(g.dir, "repos", "repo.git")
}

// Push adds a commit with the given files, by path, to branch main.
func (g *GitServer) Push(ctx context.Context, files map[string]string) error {
	if err := g.commit(ctx, files); err != nil {
		return err
	}
	_, err := g.git(ctx, "push", "-q", g.repo(), "main")
	return err
}

func (g *GitServer) commit(ctx context.Context, files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(g.work(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return errors.WithStack(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return errors.WithStack(err)
		}
	}
	if _, err := g.git(ctx, "add", "."); err != nil {
		return err
	}
	if _, err := g.git(ctx, "commit", "-q", "--allow-empty", "-m", "testbed"); err != nil {
		return err
	}
	var err error
	g.Commit, err = g.git(ctx, "rev-parse", "HEAD")
	return err
}

// git runs git in the work tree.
func (g *GitServer) git(ctx context.Context, args ...string) (string, error) {
	cmd := command(ctx, "git", args...)
	cmd.Dir = g.work()
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=testbed", "GIT_AUTHOR_EMAIL=testbed@localhost",
		"GIT_COMMITTER_NAME=testbed", "GIT_COMMITTER_EMAIL=testbed@localhost",
	}
	dt, err := output(cmd)
	return strings.TrimSpace(string(dt)), err
}

// Close stops the server and removes the repository.
func (g *GitServer) Close() error {
	var err error
	if g.server != nil {
		err = g.server.Close()
	}
	return cmp.Or(err, errors.WithStack(os.RemoveAll(g.dir)))
}
