package testbed

import (
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// applets are the commands of busybox that a root filesystem has.
var applets = []string{"[", "cat", "cp", "echo", "env", "false", "grep", "ls", "mkdir", "printf", "sh", "sha256sum", "sleep", "test", "true", "wc"}

// WriteRootfs writes a root filesystem of busybox to dir, for images that start
// with FROM scratch and COPY. Steps for other platforms run it too, as the
// kernel looks at the file and not at the platform.
func WriteRootfs(dir string) error {
	src, err := exec.LookPath("busybox")
	if err != nil {
		return errors.WithStack(err)
	}
	if err := checkStatic(src); err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return errors.WithStack(err)
	}
	if err := copyFile(src, filepath.Join(bin, "busybox"), 0o755); err != nil {
		return err
	}
	for _, name := range applets {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

// checkStatic returns an error if a program needs a dynamic linker.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.Errorf("%s is not static: install busybox-static", path)
		}
	}
	return nil
}

func copyFile(src, dst string, mode os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return errors.WithStack(err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return errors.WithStack(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return errors.WithStack(err)
	}
	return errors.WithStack(out.Close())
}
