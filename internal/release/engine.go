package release

import (
	"bytes"
	"context"
	"debug/elf"
	"maps"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/engine"
	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// engineDir is the folder of the engine in its archive. Its programs are not in bin,
// where they would hide those of a Docker package.
const engineDir = "lib/graphload/"

// writeEngine builds the Docker engine, and writes an archive and a bill of materials
// for each architecture.
func (d *Release) writeEngine(ctx context.Context) error {
	src, err := engine.Prepare(ctx, d.opt.Root, engine.DefaultVersion)
	if err != nil {
		return err
	}
	licenses, err := d.engineLicenses(src)
	if err != nil {
		return err
	}
	for _, arch := range slices.Sorted(maps.Keys(Architectures)) {
		b := &Builder{Arch: arch, Dir: filepath.Join(d.work, "engine", arch), Env: d.env}
		progress.Printf("building the Docker engine %s for linux/%s", src.DockerVersion(), arch)
		if err := b.BuildEngine(ctx, src, d.revision); err != nil {
			return err
		}
		if err := d.writeEngineArchive(src, b, licenses); err != nil {
			return err
		}
	}
	return nil
}

// writeEngineArchive writes an archive that users unpack to /usr/local.
func (d *Release) writeEngineArchive(src *engine.Source, b *Builder, licenses []File) error {
	contents := slices.Clone(licenses)
	var bins []Binary
	for _, c := range engine.Commands {
		path := filepath.Join(b.Dir, c.Name)
		if err := checkStatic(path, b.Arch); err != nil {
			return err
		}
		contents = append(contents, File{Name: engineDir + c.Name, Path: path, Mode: 0o755})
		bins = append(bins, Binary{Name: engineDir + c.Name, Path: path, Version: src.DockerVersion()})
	}
	name := "docker-" + src.DockerVersion() + ".linux-" + b.Arch + ".tgz"
	progress.Printf("writing %s", name)
	var buf bytes.Buffer
	if err := WriteArchive(&buf, contents, d.epoch); err != nil {
		return err
	}
	if err := d.writeFile(name, buf.Bytes()); err != nil {
		return err
	}
	sbom, err := SBOM(Contents{Name: name, Version: src.DockerVersion(), Revision: d.revision, Binaries: bins, Created: d.epoch})
	if err != nil {
		return err
	}
	return d.writeFile(name+".spdx.json", sbom)
}

// engineLicenses returns the licenses of the engine, of BuildKit, of this repository,
// and of the C library linked into dockerd.
func (d *Release) engineLicenses(src *engine.Source) ([]File, error) {
	moby, err := LicenseFiles("moby", src.Dir)
	if err != nil {
		return nil, err
	}
	buildkit, err := LicenseFiles("buildkit", filepath.Join(d.opt.Root, "build", src.BuildKit))
	if err != nil {
		return nil, err
	}
	return slices.Concat(moby, buildkit, glibcLicenses(), []File{licenseFile("LICENSE", filepath.Join(d.opt.Root, "LICENSE"))}), nil
}

// checkStatic returns an error if a program is for another architecture, or needs
// libraries.
func checkStatic(path, arch string) error {
	f, err := elf.Open(path)
	if err != nil {
		return errors.Wrap(err, path)
	}
	defer f.Close()
	if f.Machine != machines[arch] {
		return errors.Errorf("%s is for %s, not for %s", path, f.Machine, arch)
	}
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		return errors.Errorf("%s needs %q, error %v", path, libs, err)
	}
	return nil
}
