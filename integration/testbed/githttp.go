package testbed

import (
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
	Commit string

	server *httpServer
	dir    string
}

// StartGitServer serves a repository with one commit of the given files, by
// path, on branch main. If token is set, only requests with it as the password
// of x-access-token are served, which is what BuildKit makes of GIT_AUTH_TOKEN.
// It must be closed.
func StartGitServer(ctx context.Context, files map[string]string, token string) (_ *GitServer, retErr error) {
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
	work := filepath.Join(dir, "work")
	for name, content := range files {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, errors.WithStack(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	git := func(args ...string) (string, error) {
		cmd := command(ctx, "git", args...)
		cmd.Dir = work
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=testbed", "GIT_AUTHOR_EMAIL=testbed@localhost",
			"GIT_COMMITTER_NAME=testbed", "GIT_COMMITTER_EMAIL=testbed@localhost",
		}
		dt, err := output(cmd)
		return strings.TrimSpace(string(dt)), err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"},
		{"add", "."},
		{"commit", "-q", "--allow-empty", "-m", "initial"},
		{"clone", "-q", "--bare", ".", filepath.Join(dir, "repos", "repo.git")},
	} {
		if _, err := git(args...); err != nil {
			return nil, err
		}
	}
	if g.Commit, err = git("rev-parse", "HEAD"); err != nil {
		return nil, err
	}
	execPath, err := git("--exec-path")
	if err != nil {
		return nil, err
	}
	var handler http.Handler = &cgi.Handler{
		Path: filepath.Join(execPath, "git-http-backend"),
		Dir:  dir,
		// HOME is where git looks for settings, of which there are none
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Join(dir, "repos"), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
	}
	if token != "" {
		handler = requireBasicAuth(handler, "x-access-token", token)
	}
	if g.server, err = serveHTTP(handler); err != nil {
		return nil, err
	}
	g.URL = g.server.URL + "/repo.git"
	return g, nil
}

// Close stops the server and removes the repository.
func (g *GitServer) Close() error {
	var err error
	if g.server != nil {
		err = g.server.Close()
	}
	if rmErr := os.RemoveAll(g.dir); err == nil {
		err = errors.WithStack(rmErr)
	}
	return err
}
