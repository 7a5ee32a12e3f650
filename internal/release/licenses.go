package release

import (
	"context"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
)

// LicenseDir is the folder of licenses in an archive.
const LicenseDir = "share/doc/graphload/"

// projects are the modules that components are built from.
var projects = map[string]gomod.Module{"runc": runc, "cni-plugins": cniPlugins, "rootlesskit": rootlesskit}

// Licenses returns the licenses of all components, and of the libraries linked into
// them.
func (b *Builder) Licenses(ctx context.Context) ([]File, error) {
	var out []File
	for _, project := range slices.Sorted(maps.Keys(projects)) {
		dir, err := projects[project].Download(ctx)
		if err != nil {
			return nil, err
		}
		files, err := LicenseFiles(project, dir)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	sysroot, _, err := b.sysroot(ctx)
	if err != nil {
		return nil, err
	}
	out = append(out, licenseFile("copyright.libseccomp", filepath.Join(sysroot, "usr/share/doc", seccomp, "copyright")))
	return append(out, glibcLicenses()...), nil
}

// glibcLicenses returns the licenses of the C library linked into binaries, which are
// the same for all architectures.
func glibcLicenses() []File {
	return []File{
		licenseFile("copyright.glibc", "/usr/share/doc/libc6-dev/copyright"),
		licenseFile("LGPL-2.1", "/usr/share/common-licenses/LGPL-2.1"),
	}
}

func licenseFile(name, path string) File {
	return File{Name: LicenseDir + name, Path: path, Mode: 0o644}
}

// LicenseFiles returns the files about the license of a project from its folder.
func LicenseFiles(project, dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	var out []File
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || path.Ext(name) == ".GO" || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		out = append(out, File{Name: LicenseDir + e.Name() + "." + project, Path: filepath.Join(dir, e.Name()), Mode: 0o644})
	}
	if len(out) == 0 {
		return nil, errors.Errorf("no license of %s in %s", project, dir)
	}
	return out, nil
}
