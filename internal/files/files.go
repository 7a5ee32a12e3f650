// Package files has functions for files: they replace a file in one step, copy and hash
// files, and find the dynamic linker that a program needs.
package files

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
)

// Replace calls create to write a file with a temporary name, and renames it to path. A
// process that reads or runs path meanwhile sees the old file or the new one.
func Replace(path string, create func(tmp string) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.WithStack(err)
	}
	tmp := path + "." + rand.Text()[:8] + ".tmp"
	defer os.Remove(tmp)
	if err := create(tmp); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Rename(tmp, path))
}

// Write replaces a file. Its mode does not depend on the umask.
func Write(path string, dt []byte, mode fs.FileMode) error {
	return Replace(path, func(tmp string) error {
		if err := os.WriteFile(tmp, dt, mode); err != nil {
			return err
		}
		return os.Chmod(tmp, mode)
	})
}

// Copy replaces dst with a copy of src.
func Copy(src, dst string, mode fs.FileMode) error {
	dt, err := os.ReadFile(src)
	if err != nil {
		return errors.WithStack(err)
	}
	return Write(dst, dt, mode)
}

// Empty creates an empty folder, and removes the content of an existing one.
func Empty(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.MkdirAll(dir, 0o755))
}

// SHA256 returns the digest of a file, in hexadecimal.
func SHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", errors.WithStack(err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Interpreter returns the dynamic linker that a program needs, or "".
func Interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			dt, err := io.ReadAll(p.Open())
			if err != nil {
				return "unreadable"
			}
			return string(bytes.TrimRight(dt, "\x00"))
		}
	}
	return ""
}

// CheckStatic returns an error if a program needs a dynamic linker.
func CheckStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	defer f.Close()
	if Interpreter(f) != "" {
		return errors.Errorf("%s is not static: install busybox-static", path)
	}
	return nil
}

// CacheDir returns the folder with the given path in the cache folder of the user, which
// keeps files between runs.
func CacheDir(elem ...string) (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(append([]string{dir, "graphload"}, elem...)...), errors.WithStack(err)
}
