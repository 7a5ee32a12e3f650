package release

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	dockername "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// CheckImage returns an error unless an OCI archive has an image for each architecture
// whose programs can start.
func CheckImage(file string, archs []string) error {
	return withImages(file, archs, func(arch string, img v1.Image) error {
		return errors.Wrapf(checkRootfs(img, arch), "linux/%s", arch)
	})
}

// WriteDockerArchive writes the image for an architecture in an OCI archive in the
// format that docker load accepts on any engine.
func WriteDockerArchive(file, arch, name, out string) error {
	tag, err := dockername.NewTag(name)
	if err != nil {
		return errors.WithStack(err)
	}
	return withImages(file, []string{arch}, func(_ string, img v1.Image) error {
		return errors.WithStack(tarball.WriteToFile(out, tag, img))
	})
}

// withImages calls f with each image for the given architectures in an OCI archive.
func withImages(file string, archs []string, f func(arch string, img v1.Image) error) error {
	dir, err := os.MkdirTemp("", "graphload-image-")
	if err != nil {
		return errors.WithStack(err)
	}
	defer os.RemoveAll(dir)
	in, err := os.Open(file)
	if err != nil {
		return errors.WithStack(err)
	}
	defer in.Close()
	if err := extract(in, dir); err != nil {
		return err
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	images, err := partial.FindImages(flatten(idx), func(v1.Descriptor) bool { return true })
	if err != nil {
		return errors.WithStack(err)
	}
	found := map[string]v1.Image{}
	for _, img := range images {
		cfg, err := img.ConfigFile()
		if err != nil {
			return errors.WithStack(err)
		}
		found[cfg.Architecture] = img
	}
	for _, arch := range archs {
		if found[arch] == nil {
			return errors.Errorf("no image for linux/%s", arch)
		}
		if err := f(arch, found[arch]); err != nil {
			return err
		}
	}
	return nil
}

// flatten returns the inner index if it is the only entry of an index, or the index
// itself.
func flatten(idx v1.ImageIndex) v1.ImageIndex {
	if inner, err := partial.FindIndexes(idx, func(v1.Descriptor) bool { return true }); err == nil && len(inner) == 1 {
		return inner[0]
	}
	return idx
}

// extract unpacks the regular files of a tar archive.
func extract(r io.Reader, dir string) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.WithStack(err)
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		if !filepath.IsLocal(hdr.Name) {
			return errors.Errorf("%s is not below the archive", hdr.Name)
		}
		path := filepath.Join(dir, filepath.FromSlash(hdr.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return errors.WithStack(err)
		}
		f, err := os.Create(path)
		if err != nil {
			return errors.WithStack(err)
		}
		if _, err := io.Copy(f, tr); err != nil {
			f.Close()
			return errors.WithStack(err)
		}
		if err := f.Close(); err != nil {
			return errors.WithStack(err)
		}
	}
}

// rootfs is the content of an image, by path without a leading slash.
type rootfs struct {
	links map[string]string
	bins  map[string]*elf.File
	all   map[string]fs.FileMode
}

// checkRootfs looks for programs that cannot start: for another machine, or with a
// library or interpreter that the image lacks. It runs nothing, so it also checks images
// for other machines.
func checkRootfs(img v1.Image, arch string) error {
	rc := mutate.Extract(img)
	defer rc.Close()
	r := &rootfs{links: map[string]string{}, bins: map[string]*elf.File{}, all: map[string]fs.FileMode{}}
	if err := r.read(tar.NewReader(rc)); err != nil {
		return err
	}
	if len(r.bins) == 0 {
		return errors.New("no programs in the image")
	}
	var dirs []string
	for _, dir := range []string{"lib", "usr/lib"} {
		dirs = append(dirs, dir, path.Join(dir, Architectures[arch]))
	}
	for name, f := range r.bins {
		if f.Machine != machines[arch] {
			return errors.Errorf("%s is for %s, not for %s", name, f.Machine, arch)
		}
		libs, err := f.ImportedLibraries()
		if err != nil {
			return errors.Wrap(err, name)
		}
		if interp := files.Interpreter(f); interp != "" && !r.exists(interp) {
			return errors.Errorf("%s needs %s", name, interp)
		}
		for _, lib := range libs {
			if !slices.ContainsFunc(append(dirs, path.Dir(name)), func(dir string) bool { return r.exists(path.Join(dir, lib)) }) {
				return errors.Errorf("%s needs %s", name, lib)
			}
		}
	}
	return nil
}

func (r *rootfs) read(tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.WithStack(err)
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		r.all[name] = hdr.FileInfo().Mode()
		switch hdr.Typeflag {
		case tar.TypeSymlink:
			target := hdr.Linkname
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(name), target)
			}
			r.links[name] = target
		case tar.TypeReg:
			dt, err := io.ReadAll(tr)
			if err != nil {
				return errors.WithStack(err)
			}
			if !bytes.HasPrefix(dt, []byte(elf.ELFMAG)) {
				continue
			}
			f, err := elf.NewFile(bytes.NewReader(dt))
			if err != nil {
				return errors.Wrap(err, name)
			}
			if f.Type == elf.ET_EXEC || f.Type == elf.ET_DYN {
				r.bins[name] = f
			}
		}
	}
}

// exists reports whether a path exists. It follows links only in the last part of the
// path.
func (r *rootfs) exists(name string) bool {
	name = strings.TrimPrefix(name, "/")
	for range 10 {
		target, ok := r.links[name]
		if !ok {
			_, ok := r.all[name]
			return ok
		}
		name = strings.TrimPrefix(target, "/")
	}
	return false
}
