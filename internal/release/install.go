package release

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// installFiles returns the files of an installation other than binaries. Its systemd
// units name the prefix.
func installFiles(root, prefix string) ([]File, error) {
	contents := []File{
		{Name: "share/doc/graphload/LICENSE", Path: filepath.Join(root, "LICENSE"), Mode: 0o644},
	}
	for _, name := range []string{"buildkit.service", "buildkit.socket"} {
		dt, err := os.ReadFile(filepath.Join(root, "packaging", "systemd", name))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		dt = bytes.ReplaceAll(dt, []byte("@PREFIX@"), []byte(prefix))
		contents = append(contents, File{Name: "lib/systemd/system/" + name, Data: dt, Mode: 0o644})
	}
	return contents, nil
}

// CheckFolders returns an error unless the prefix, which systemd units name, and
// destdir, which is optional, are absolute.
func CheckFolders(destdir, prefix string) error {
	if !filepath.IsAbs(prefix) {
		return errors.Errorf("prefix %q is not absolute", prefix)
	}
	if destdir != "" && !filepath.IsAbs(destdir) {
		return errors.Errorf("destdir %q is not absolute", destdir)
	}
	return nil
}

// installation returns all files of an installation with the binaries in bin.
func installation(root, bin, destdir, prefix string) ([]File, error) {
	if err := CheckFolders(destdir, prefix); err != nil {
		return nil, err
	}
	contents, err := installFiles(root, filepath.Clean(prefix))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		contents = append(contents, File{Name: "bin/" + name, Path: filepath.Join(bin, name), Mode: 0o755})
	}
	return contents, nil
}

// Install installs the binaries in bin, the systemd units and the license.
func Install(root, bin, destdir, prefix string) error {
	contents, err := installation(root, bin, destdir, prefix)
	if err != nil {
		return err
	}
	for _, f := range contents {
		dt, err := f.content()
		if err != nil {
			return err
		}
		dst := filepath.Join(destdir, prefix, filepath.FromSlash(f.Name))
		// replace the file in one step, because a daemon may be running from it
		if err := files.Write(dst, dt, f.Mode); err != nil {
			return err
		}
		progress.Printf("%s", dst)
	}
	return nil
}

// Uninstall removes the files that Install installs.
func Uninstall(root, destdir, prefix string) error {
	contents, err := installation(root, "", destdir, prefix)
	if err != nil {
		return err
	}
	for _, f := range contents {
		dst := filepath.Join(destdir, prefix, filepath.FromSlash(f.Name))
		if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.WithStack(err)
		}
	}
	// remove folders that are empty
	for _, dir := range slices.Backward([]string{"share", "share/doc", "share/doc/graphload"}) {
		os.Remove(filepath.Join(destdir, prefix, dir))
	}
	return nil
}
