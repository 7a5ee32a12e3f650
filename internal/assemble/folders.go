package assemble

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/seam"
	"github.com/pkg/errors"
	"golang.org/x/mod/modfile"
)

// ownDirs are the folders of the repository whose files join no other module.
var ownDirs = []string{"bin", "build", "cmd/graphload", "dist", "docs", "examples", "integration", "internal", "packaging"}

// addedDirs returns the folders of the repository whose Go files join the package of the
// same path in BuildKit, or for another module below the folder with its name. go.mod
// ignores these folders, because the files compile only in the tree. addedDirs returns an
// error for a Go file in any other folder, which would be in no program and in no test.
func addedDirs(root string) (dirs []string, _ error) {
	path := filepath.Join(root, "go.mod")
	dt, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	mod, err := modfile.Parse(path, dt, nil)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	list, err := seam.Load(filepath.Join(root, SeamList))
	if err != nil {
		return nil, err
	}
	known := slices.Clone(ownDirs)
	for _, ignore := range mod.Ignore {
		dir := strings.TrimPrefix(ignore.Path, "./")
		if list.Modules[dir] == nil && !slices.Contains(ownDirs, dir) {
			dirs = append(dirs, dir)
		}
		known = append(known, dir)
	}
	return dirs, errors.WithStack(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch rel = filepath.ToSlash(rel); {
		case d.IsDir() && (slices.Contains(known, rel) || rel != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case !d.IsDir() && strings.Contains(rel, "/") && strings.HasSuffix(rel, ".go"):
			folder, _, _ := strings.Cut(rel, "/")
			return errors.Errorf("%s is in no folder that go.mod ignores: add ./%s to its ignore block if the file joins BuildKit", rel, folder)
		}
		return nil
	}))
}
