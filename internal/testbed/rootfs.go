package testbed

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// applets are the commands of busybox in a root filesystem.
var applets = []string{"[", "cat", "cp", "echo", "env", "false", "grep", "ls", "mkdir", "printf", "sh", "sha256sum", "sleep", "test", "true", "wc"}

// WriteRootfs writes a root filesystem of busybox to dir, for images that start
// with FROM scratch and COPY. Steps for other platforms run it too, because the
// kernel checks the format of the binary and not the platform of the image.
func WriteRootfs(dir string) error {
	src, err := exec.LookPath("busybox")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := files.CheckStatic(src); err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return errors.WithStack(err)
	}
	if err := files.Copy(src, filepath.Join(bin, "busybox"), 0o755); err != nil {
		return err
	}
	for _, name := range applets {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}
