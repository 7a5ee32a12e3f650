package release

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/files"
	"github.com/graphload/graphload/internal/progress"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
)

// checksums is the file with the checksums of all other files.
const checksums = "SHA256SUMS"

// Release is what graphload dist writes.
type Release struct {
	opt      assemble.Options
	dir      string // absolute
	work     string // absolute, for binaries and the build context of the images
	epoch    time.Time
	revision string
	mirror   apt.Mirror
	debs     string   // folder for packages of Debian
	env      []string // added to the environment of the go command

	names    []string                 // of the files written so far
	linked   map[string][]apt.Package // packages linked into binaries, by architecture
	licenses []File
	images   *ImageContext
	archives map[string]*apt.Archive
}

// New returns a release that writes its files to dir. It uses the packages of a
// snapshot of Debian's archives, or today's if snapshot is empty.
func New(ctx context.Context, opt assemble.Options, dir, snapshot string) (*Release, error) {
	d := &Release{
		opt: opt, mirror: apt.DefaultMirror, work: filepath.Join(opt.Root, "build", "dist"),
		archives: map[string]*apt.Archive{},
	}
	if snapshot != "" {
		d.mirror = apt.Snapshot(snapshot)
	}
	var err error
	if d.dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	if d.debs, err = files.CacheDir("debian"); err != nil {
		return nil, err
	}
	if d.revision, err = build.Revision(ctx, opt.Root); err != nil {
		return nil, err
	}
	if strings.HasSuffix(d.revision, ".m") {
		progress.Printf("the repository has uncommitted changes: no commit can reproduce these files")
	}
	d.epoch, err = sourceDateEpoch(ctx, opt.Root)
	return d, err
}

// sourceDateEpoch returns the time of all files of a release: SOURCE_DATE_EPOCH, or
// the time of the last commit.
func sourceDateEpoch(ctx context.Context, root string) (time.Time, error) {
	v := os.Getenv("SOURCE_DATE_EPOCH")
	if v == "" {
		var err error
		if v, err = build.Git(ctx, root, "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, errors.Wrap(err, "set SOURCE_DATE_EPOCH outside of a clone")
		}
	}
	sec, err := strconv.ParseInt(v, 10, 64)
	return time.Unix(sec, 0).UTC(), errors.Wrap(err, "SOURCE_DATE_EPOCH")
}

// Parts are the optional parts of a release.
type Parts struct {
	Images, Engine bool
}

// Write writes the archives of BuildKit, and the given parts.
func (d *Release) Write(ctx context.Context, parts Parts) error {
	d.names, d.linked = nil, map[string][]apt.Package{}
	t, err := build.Tree(ctx, d.opt)
	if err != nil {
		return err
	}
	if d.images, err = NewImageContext(filepath.Join(d.work, "context")); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	if err := removeRelease(d.dir); err != nil {
		return err
	}
	for _, arch := range slices.Sorted(maps.Keys(Architectures)) {
		if err := d.build(ctx, t, arch); err != nil {
			return err
		}
		if err := d.writeArchive(arch); err != nil {
			return err
		}
	}
	if parts.Engine {
		if err := d.writeEngine(ctx); err != nil {
			return err
		}
	}
	if parts.Images {
		if err := d.writeImages(ctx); err != nil {
			return err
		}
	}
	sums, err := Checksums(d.dir, d.names)
	if err != nil {
		return err
	}
	if err := files.Write(filepath.Join(d.dir, checksums), sums, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s", sums)
	return nil
}

// removeRelease removes the files of an earlier release from a folder. Otherwise files
// that the next release does not write, such as images, would pass for a part of it.
func removeRelease(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, e := range entries {
		written := func(pattern string) bool {
			ok, _ := filepath.Match(pattern, e.Name()) //nolint:errcheck // the only error is a bad pattern
			return ok
		}
		if !slices.ContainsFunc([]string{"buildkit-*+graphload.*", "docker-*+graphload.*", checksums}, written) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

// build builds the binaries of an architecture, and collects their licenses.
func (d *Release) build(ctx context.Context, t *assemble.Tree, arch string) error {
	a, err := d.archive(ctx, arch)
	if err != nil {
		return err
	}
	b := &Builder{Arch: arch, Dir: d.images.BinDir(arch), Work: d.work, Archive: a, Env: d.env}
	ldflags, err := build.VersionFlags(ctx, d.opt, upstream.Module)
	if err != nil {
		return err
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		progress.Printf("building %s for linux/%s", name, arch)
		if err := b.Build(ctx, t.Dir, "./cmd/"+name, name, ldflags); err != nil {
			return err
		}
	}
	for _, c := range Components {
		progress.Printf("building %s %s for linux/%s", c.Name, c.Module.Version, arch)
		pkgs, err := b.BuildComponent(ctx, c)
		if err != nil {
			return err
		}
		d.linked[arch] = append(d.linked[arch], pkgs...)
	}
	buildkit, err := LicenseFiles("buildkit", t.Upstream.Dir)
	if err != nil {
		return err
	}
	components, err := b.Licenses(ctx)
	d.licenses = slices.Concat(buildkit, components)
	return err
}

// archive returns Debian's packages for an architecture.
func (d *Release) archive(ctx context.Context, arch string) (*apt.Archive, error) {
	if a := d.archives[arch]; a != nil {
		return a, nil
	}
	progress.Printf("reading the index of Debian for %s", arch)
	a, err := apt.Open(ctx, d.debs, arch, d.mirror)
	if err != nil {
		return nil, err
	}
	d.archives[arch] = a
	return a, nil
}

// name returns the name of a file with the given suffix.
func (d *Release) name(suffix string) string {
	return "buildkit-" + build.Version(d.opt) + "." + suffix
}

// writeArchive writes the archive of an architecture, in the layout of BuildKit's own,
// which users unpack to /usr/local.
func (d *Release) writeArchive(arch string) error {
	contents, err := installFiles(d.opt.Root, "/usr/local")
	if err != nil {
		return err
	}
	contents = append(contents, d.licenses...)
	var bins []Binary
	for _, name := range append([]string{"buildkitd", "buildctl"}, componentNames()...) {
		path := filepath.Join(d.images.BinDir(arch), name)
		contents = append(contents, File{Name: "bin/" + name, Path: path, Mode: 0o755})
		bins = append(bins, Binary{Name: "bin/" + name, Path: path, Version: d.binaryVersion(name)})
	}
	name := d.name("linux-" + arch + ".tar.gz")
	progress.Printf("writing %s", name)
	var buf bytes.Buffer
	if err := WriteArchive(&buf, contents, d.epoch); err != nil {
		return err
	}
	if err := d.writeFile(name, buf.Bytes()); err != nil {
		return err
	}
	sbom, err := SBOM(Contents{Name: name, Version: build.Version(d.opt), Revision: d.revision, Binaries: bins, Packages: d.linked[arch], Created: d.epoch})
	if err != nil {
		return err
	}
	return d.writeFile(name+".spdx.json", sbom)
}

// componentNames returns the names of the components in the archive.
func componentNames() (names []string) {
	for _, c := range Components {
		if !c.Image {
			names = append(names, c.Name)
		}
	}
	return names
}

func (d *Release) binaryVersion(name string) string {
	for _, c := range Components {
		if c.Name == name {
			return c.Module.Version
		}
	}
	return build.Version(d.opt)
}

func (d *Release) writeFile(name string, dt []byte) error {
	d.names = append(d.names, name)
	return files.Write(filepath.Join(d.dir, name), dt, 0o644)
}

// Check writes the release again to another folder and compares the files.
func (d *Release) Check(ctx context.Context, parts Parts) (retErr error) {
	temp, err := os.MkdirTemp("", "graphload-dist-")
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { retErr = cmp.Or(retErr, removeAll(temp)) }()
	again := *d
	again.dir, again.work = filepath.Join(temp, "dist"), filepath.Join(temp, "work")
	again.env = []string{"GOCACHE=" + filepath.Join(temp, "cache")}
	progress.Printf("building everything again with an empty cache")
	if err := again.Write(ctx, parts); err != nil {
		return err
	}
	var differ []string
	for _, name := range append(slices.Clip(d.names), checksums) {
		first, err := files.SHA256(filepath.Join(d.dir, name))
		if err != nil {
			return err
		}
		second, err := files.SHA256(filepath.Join(again.dir, name))
		if err != nil {
			return err
		}
		if first != second {
			differ = append(differ, name)
		}
	}
	if len(differ) > 0 {
		return errors.Errorf("the second build has other %s", strings.Join(differ, ", "))
	}
	progress.Printf("the second build has the same %d files", len(d.names)+1)
	return nil
}

// removeAll removes a folder that may have read-only folders, like a cache of the go
// command.
func removeAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	return errors.WithStack(cmp.Or(err, os.RemoveAll(dir)))
}

// writeImages builds the images for all platforms with a daemon of this repository.
func (d *Release) writeImages(ctx context.Context) (retErr error) {
	archs := slices.Sorted(maps.Keys(Architectures))
	open := func(arch string) (*apt.Archive, error) { return d.archive(ctx, arch) }
	progress.Printf("fetching packages of Debian")
	if err := d.images.Prepare(ctx, filepath.Join(d.opt.Root, "packaging", "image"), archs, open); err != nil {
		return err
	}
	own := File{Name: LicenseDir + "LICENSE", Path: filepath.Join(d.opt.Root, "LICENSE")}
	if err := d.images.AddLicenses(append(slices.Clip(d.licenses), own)); err != nil {
		return err
	}
	if _, err := build.Daemon(ctx, d.opt, false); err != nil {
		return err
	}
	bkd, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: testbed.Graphload, Quiet: true})
	if err != nil {
		return err
	}
	defer testbed.CloseLast(bkd, &retErr)
	c, err := client.New(ctx, bkd.Addr)
	if err != nil {
		return errors.WithStack(err)
	}
	defer c.Close()
	for _, v := range Variants {
		suffix := "oci.tar"
		if v == Rootless {
			suffix = "rootless.oci.tar"
		}
		name := d.name(suffix)
		progress.Printf("building %s", name)
		if err := d.images.Build(ctx, c, ImageOptions{
			Variant: v, Archs: archs, Name: imageName(d.opt, v),
			Output: filepath.Join(d.dir, name), Epoch: d.epoch, Labels: d.labels(),
		}); err != nil {
			return err
		}
		d.names = append(d.names, name)
		if err := CheckImage(filepath.Join(d.dir, name), archs); err != nil {
			return errors.Wrap(err, name)
		}
		for _, arch := range archs {
			if err := d.writeImageSBOM(name, v, arch); err != nil {
				return err
			}
			if v == Rootful {
				loadable := d.name("docker-" + arch + ".tar")
				if err := WriteDockerArchive(filepath.Join(d.dir, name), arch, imageName(d.opt, v), filepath.Join(d.dir, loadable)); err != nil {
					return err
				}
				d.names = append(d.names, loadable)
			}
		}
	}
	return nil
}

// imageName returns the name of a loaded image. Its registry does not exist and never
// will (RFC 2606): buildx first tries to pull the image, which it then runs with all
// privileges, and uses the loaded image only if the pull fails.
func imageName(opt assemble.Options, v Variant) string {
	name := "graphload.invalid/buildkit:" + opt.Version
	if v == Rootless {
		name += "-rootless"
	}
	return name
}

func (d *Release) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    "BuildKit with lazy solves loaded into the graph",
		"org.opencontainers.image.source":   "https://" + build.Package,
		"org.opencontainers.image.version":  build.Version(d.opt),
		"org.opencontainers.image.revision": d.revision,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
}

func (d *Release) writeImageSBOM(image string, v Variant, arch string) error {
	entries, err := os.ReadDir(d.images.BinDir(arch))
	if err != nil {
		return errors.WithStack(err)
	}
	var bins []Binary
	for _, e := range entries {
		if v == Rootful && e.Name() == "rootlesskit" {
			continue
		}
		bins = append(bins, Binary{Name: "usr/bin/" + e.Name(), Path: filepath.Join(d.images.BinDir(arch), e.Name()), Version: d.binaryVersion(e.Name())})
	}
	pkgs := d.images.PackagesOf(arch, v)
	pkgs = append(pkgs, d.linked[arch]...)
	name := strings.TrimSuffix(image, ".oci.tar") + ".linux-" + arch + ".oci.spdx.json"
	sbom, err := SBOM(Contents{Name: image + " linux/" + arch, Version: build.Version(d.opt), Revision: d.revision, Binaries: bins, Packages: pkgs, Created: d.epoch})
	if err != nil {
		return err
	}
	return d.writeFile(name, sbom)
}
