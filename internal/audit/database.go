package audit

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// DefaultDB is the module with the Go project's database. The go command fetches it like
// any other module, even if the machine can only reach a module proxy.
const DefaultDB = "golang.org/x/vulndb@latest"

// Open returns the URL of a database for govulncheck. The name is a URL, or a module
// with a version, from whose reports Open makes a database in the cache folder of the
// user, in a folder named after the version. Open returns ErrNoDatabase if it finds no
// database.
func Open(ctx context.Context, name string) (url string, err error) {
	url = name
	if !strings.Contains(name, "://") {
		if url, err = fromModule(ctx, name); err != nil {
			return "", errors.Wrapf(ErrNoDatabase, "%v", err)
		}
	}
	if err := checkIndex(ctx, url); err != nil {
		return "", errors.Wrapf(ErrNoDatabase, "%v", err)
	}
	return url, nil
}

// fromModule makes a database of the reports in a module, unless there is one for that
// version.
func fromModule(ctx context.Context, name string) (_ string, retErr error) {
	path, version, ok := strings.Cut(name, "@")
	if !ok {
		return "", errors.Errorf("%q is neither a URL nor a module with a version", name)
	}
	src, err := gomod.Module{Path: path, Version: version}.Download(ctx)
	if err != nil {
		return "", err
	}
	dir, err := files.CacheDir("vulndb", filepath.Base(src))
	if err != nil {
		return "", err
	}
	url := "file://" + filepath.ToSlash(dir)
	if _, err := os.Stat(dir); err == nil {
		return url, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "make-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer os.RemoveAll(temp)
	tool, out := filepath.Join(temp, "indexdb"), filepath.Join(temp, "db")
	if err := gomod.Build(ctx, src, "./cmd/indexdb", tool, "", []string{"CGO_ENABLED=0", "GOFLAGS="}); err != nil {
		return "", err
	}
	if dt, err := exec.CommandContext(ctx, tool, "-vulns", filepath.Join(src, "data", "osv"), "-out", out).CombinedOutput(); err != nil {
		return "", errors.Wrapf(err, "indexdb: %s", dt)
	}
	return url, errors.WithStack(os.Rename(out, dir))
}

// checkIndex returns an error if there is no database at url.
func checkIndex(ctx context.Context, url string) error {
	const index = "/index/db.json"
	if dir, ok := strings.CutPrefix(url, "file://"); ok {
		_, err := os.Stat(filepath.FromSlash(dir + index))
		return errors.WithStack(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+index, nil)
	if err != nil {
		return errors.WithStack(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return errors.WithStack(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
