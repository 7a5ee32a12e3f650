package testbed

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// debianArchive opens the archive with the current packages of an architecture.
func debianArchive(ctx context.Context, arch string) (*apt.Archive, error) {
	dir, err := files.CacheDir("debian")
	if err != nil {
		return nil, err
	}
	return apt.Open(ctx, dir, arch, apt.DefaultMirror)
}

// present are packages that any machine with tests has, and packages that only
// maintainer scripts use, which nothing runs.
var present = []string{"adduser", "debconf", "dpkg", "libc6", "libgcc-s1", "gcc-12-base", "passwd", "perl", "perl-base", "tar"}

// unpackPackages unpacks Debian packages and their dependencies to the cache folder
// with the given name, unless that has the given file. It installs nothing, so no
// service starts and the machine stays as it is.
func unpackPackages(ctx context.Context, name, file string, packages []string) (string, error) {
	dir, err := files.CacheDir(name)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
		return dir, nil
	}
	a, err := debianArchive(ctx, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	pkgs, err := a.Resolve(ctx, packages, present)
	if err != nil {
		return "", err
	}
	debs, err := a.Fetch(ctx, pkgs)
	if err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), name+"-")
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer os.RemoveAll(temp)
	if err := apt.Unpack(ctx, temp, debs...); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); err != nil {
		return "", errors.WithStack(err)
	}
	return dir, nil
}

// libraryPath returns the environment variable for the libraries in a folder with
// unpacked packages.
func libraryPath(dir string) string {
	triplet := apt.Triplets[runtime.GOARCH]
	return "LD_LIBRARY_PATH=" + strings.Join([]string{filepath.Join(dir, "usr/lib", triplet), filepath.Join(dir, "lib", triplet)}, ":")
}
