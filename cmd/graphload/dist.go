package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/debian"
	"github.com/graphload/graphload/internal/release"
	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func distCommand() *cli.Command {
	return &cli.Command{
		Name:  "dist",
		Usage: "write archives and images for linux/amd64 and linux/arm64, with bills of materials, provenance and checksums",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "dist", Usage: "folder to write to; an earlier release in it is removed"},
			&cli.BoolFlag{Name: "no-image", Usage: "without images: no daemon is started"},
			&cli.StringFlag{Name: "debian-snapshot", Usage: "state of Debian's archives for the images, as 20261123T000000Z (default: the current one)"},
			&cli.BoolFlag{Name: "check", Usage: "do it again in a second folder, with an empty build cache, and compare"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			if err := installDistPackages(ctx); err != nil {
				return err
			}
			d, err := newDistribution(ctx, opt, cmd.String("output"), cmd.String("debian-snapshot"))
			if err != nil {
				return err
			}
			if err := d.write(ctx, !cmd.Bool("no-image")); err != nil {
				return err
			}
			if cmd.Bool("check") {
				return d.check(ctx, !cmd.Bool("no-image"))
			}
			return nil
		},
	}
}

// installDistPackages installs the compilers for C of all architectures.
func installDistPackages(ctx context.Context) error {
	pkgs := map[string]string{"pkg-config": "pkg-config", "dpkg-deb": "dpkg"}
	for arch, triplet := range release.Architectures {
		if arch == runtime.GOARCH {
			pkgs[triplet+"-gcc"] = "gcc"
			pkgs["/usr/lib/"+triplet+"/libc.a"] = "libc6-dev"
		} else {
			pkgs[triplet+"-gcc"] = "gcc-" + strings.ReplaceAll(triplet, "_", "-")
			pkgs["/usr/"+triplet+"/lib/libc.a"] = "libc6-dev-" + arch + "-cross"
		}
	}
	maps.Copy(pkgs, debianPackages)
	return installMissing(ctx, pkgs)
}

// checksums is the file with the checksums of all others.
const checksums = "SHA256SUMS"

// distribution is what make dist writes.
type distribution struct {
	opt      assemble.Options
	dir      string // absolute
	work     string // absolute, for binaries and the context of the images
	epoch    time.Time
	revision string
	mirror   debian.Mirror
	debs     string   // folder with packages of Debian
	env      []string // added to the one of the go command

	names    []string // of what has been written
	deps     map[string]release.Dependency
	linked   map[string][]debian.Package // into binaries, by architecture
	licenses []release.File
	images   *release.ImageContext
	archives map[string]*debian.Archive
}

func newDistribution(ctx context.Context, opt assemble.Options, dir, snapshot string) (*distribution, error) {
	d := &distribution{
		opt: opt, mirror: debian.DefaultMirror, work: filepath.Join(opt.Root, "build", "dist"),
		archives: map[string]*debian.Archive{},
	}
	if snapshot != "" {
		d.mirror = debian.Snapshot(snapshot)
	}
	var err error
	if d.dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	if d.debs, err = upstream.CacheDir("debian"); err != nil {
		return nil, err
	}
	if d.revision, err = revision(ctx, opt.Root); err != nil {
		return nil, err
	}
	if strings.HasSuffix(d.revision, ".m") {
		progressf("there are changes that are not committed: nobody else can make these files")
	}
	d.epoch, err = sourceDateEpoch(ctx, opt.Root)
	return d, err
}

// sourceDateEpoch is the time that all files of a release have: what
// SOURCE_DATE_EPOCH says, or the time of the last commit.
func sourceDateEpoch(ctx context.Context, root string) (time.Time, error) {
	v := os.Getenv("SOURCE_DATE_EPOCH")
	if v == "" {
		cmd := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct")
		cmd.Dir = root
		dt, err := cmd.Output()
		if err != nil {
			return time.Time{}, errors.Wrap(err, "git log: set SOURCE_DATE_EPOCH outside of a clone")
		}
		v = string(bytes.TrimSpace(dt))
	}
	sec, err := strconv.ParseInt(v, 10, 64)
	return time.Unix(sec, 0).UTC(), errors.Wrap(err, "SOURCE_DATE_EPOCH")
}

// write writes everything.
func (d *distribution) write(ctx context.Context, images bool) error {
	d.names, d.deps, d.linked = nil, map[string]release.Dependency{}, map[string][]debian.Package{}
	t, err := writeTree(ctx, d.opt)
	if err != nil {
		return err
	}
	if d.images, err = release.NewImageContext(filepath.Join(d.work, "context")); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	if err := removeRelease(d.dir); err != nil {
		return err
	}
	d.depend(gomod.Module{Path: upstream.Module, Version: d.opt.Version, Sum: t.Upstream.Sum})
	for _, arch := range slices.Sorted(maps.Keys(release.Architectures)) {
		if err := d.build(ctx, t, arch); err != nil {
			return err
		}
		if err := d.writeArchive(arch); err != nil {
			return err
		}
	}
	if images {
		if err := d.writeImages(ctx); err != nil {
			return err
		}
	}
	return d.writeProvenance(ctx)
}

// removeRelease removes a release from a folder: what it has and the next one
// has not, such as images, would be taken for a part of that.
func removeRelease(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, e := range entries {
		if ok, _ := filepath.Match("buildkit-*+graphload.*", e.Name()); !ok && e.Name() != checksums {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return errors.WithStack(err)
		}
	}
	return nil
}

// build builds the binaries of an architecture, and collects their licenses.
func (d *distribution) build(ctx context.Context, t *assemble.Tree, arch string) error {
	a, err := d.archive(ctx, arch)
	if err != nil {
		return err
	}
	b := &release.Builder{Arch: arch, Dir: d.images.BinDir(arch), Work: d.work, Archive: a, Env: d.env}
	ldflags, err := versionFlags(ctx, d.opt, upstream.Module)
	if err != nil {
		return err
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		progressf("building %s for linux/%s", name, arch)
		if err := b.Build(ctx, t.Dir, "./cmd/"+name, name, ldflags); err != nil {
			return err
		}
	}
	for _, c := range release.Components {
		progressf("building %s %s for linux/%s", c.Name, c.Module.Version, arch)
		pkgs, err := b.BuildComponent(ctx, c)
		if err != nil {
			return err
		}
		d.depend(c.Module)
		d.dependDebian(pkgs)
		d.linked[arch] = append(d.linked[arch], pkgs...)
	}
	buildkit, err := release.LicenseFiles("buildkit", t.Upstream.Dir)
	if err != nil {
		return err
	}
	components, err := b.Licenses(ctx)
	d.licenses = slices.Concat(buildkit, components)
	return err
}

// archive returns Debian's packages for an architecture.
func (d *distribution) archive(ctx context.Context, arch string) (*debian.Archive, error) {
	if a := d.archives[arch]; a != nil {
		return a, nil
	}
	progressf("reading the index of Debian for %s", arch)
	a, err := debian.Open(ctx, d.debs, arch, d.mirror)
	if err != nil {
		return nil, err
	}
	d.archives[arch] = a
	return a, nil
}

// name returns the name of a file for a platform or of a kind.
func (d *distribution) name(suffix string) string {
	return "buildkit-" + version(d.opt) + "." + suffix
}

// writeArchive writes the archive of an architecture, in the layout of
// BuildKit's own: it is unpacked to /usr/local.
func (d *distribution) writeArchive(arch string) error {
	files, err := installFiles(d.opt.Root, "/usr/local")
	if err != nil {
		return err
	}
	files = append(files, d.licenses...)
	var bins []release.Binary
	for _, name := range append([]string{"buildkitd", "buildctl"}, componentNames()...) {
		path := filepath.Join(d.images.BinDir(arch), name)
		files = append(files, release.File{Name: "bin/" + name, Path: path, Mode: 0o755})
		bins = append(bins, release.Binary{Name: "bin/" + name, Path: path, Version: d.binaryVersion(name)})
	}
	name := d.name("linux-" + arch + ".tar.gz")
	progressf("writing %s", name)
	var buf bytes.Buffer
	if err := release.WriteArchive(&buf, files, d.epoch); err != nil {
		return err
	}
	if err := d.writeFile(name, buf.Bytes()); err != nil {
		return err
	}
	sbom, err := release.SBOM(release.Contents{Name: name, Version: version(d.opt), Revision: d.revision, Binaries: bins, Packages: d.linked[arch], Created: d.epoch})
	if err != nil {
		return err
	}
	return d.writeFile(name+".spdx.json", sbom)
}

// componentNames are the components that are in the archive.
func componentNames() (names []string) {
	for _, c := range release.Components {
		if !c.Image {
			names = append(names, c.Name)
		}
	}
	return names
}

func (d *distribution) binaryVersion(name string) string {
	for _, c := range release.Components {
		if c.Name == name {
			return c.Module.Version
		}
	}
	return version(d.opt)
}

func (d *distribution) writeFile(name string, dt []byte) error {
	d.names = append(d.names, name)
	return writeFile(filepath.Join(d.dir, name), dt)
}

func (d *distribution) depend(m gomod.Module) {
	dep := release.Dependency{Name: m.Path, URI: m.PURL()}
	if dt, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil {
		dep.Digest = map[string]string{"dirHash1": hex.EncodeToString(dt)}
	}
	d.deps[dep.URI] = dep
}

func (d *distribution) dependDebian(pkgs []debian.Package) {
	for _, p := range pkgs {
		d.deps[p.PURL()] = release.Dependency{Name: p.Name, URI: p.PURL(), Digest: map[string]string{"sha256": p.SHA256}}
	}
}

// writeProvenance writes how the files came to be, and the checksums of all.
func (d *distribution) writeProvenance(ctx context.Context) error {
	commit := strings.TrimSuffix(d.revision, ".m")
	b := release.Build{
		Parameters: map[string]any{"upstream": d.opt.Version, "revision": d.revision, "sourceDateEpoch": d.epoch.Unix(), "debian": d.mirror.Archive},
		Internal:   map[string]any{"go": release.Toolchain},
		Dependencies: []release.Dependency{
			{Name: "graphload", URI: "git+https://" + modulePath + "@" + commit, Digest: map[string]string{"gitCommit": commit}},
		},
	}
	for _, triplet := range release.Architectures {
		dt, err := exec.CommandContext(ctx, triplet+"-gcc", "-dumpfullversion").Output()
		if err != nil {
			return errors.Wrapf(err, "%s-gcc", triplet)
		}
		b.Internal[triplet+"-gcc"] = string(bytes.TrimSpace(dt))
	}
	for _, uri := range slices.Sorted(maps.Keys(d.deps)) {
		b.Dependencies = append(b.Dependencies, d.deps[uri])
	}
	dt, err := release.Provenance(d.dir, d.names, b)
	if err != nil {
		return err
	}
	if err := d.writeFile(d.name("provenance.json"), dt); err != nil {
		return err
	}
	sums, err := release.Checksums(d.dir, d.names)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(d.dir, checksums), sums); err != nil {
		return err
	}
	fmt.Printf("%s", sums)
	return nil
}

// check does everything again and compares.
func (d *distribution) check(ctx context.Context, images bool) (retErr error) {
	temp, err := os.MkdirTemp("", "graphload-dist-")
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() {
		if err := removeAll(temp); retErr == nil {
			retErr = err
		}
	}()
	again := *d
	again.dir, again.work = filepath.Join(temp, "dist"), filepath.Join(temp, "work")
	again.env = []string{"GOCACHE=" + filepath.Join(temp, "cache")}
	progressf("building everything again with an empty cache")
	if err := again.write(ctx, images); err != nil {
		return err
	}
	var differ []string
	for _, name := range append(slices.Clip(d.names), checksums) {
		first, err := release.SHA256(filepath.Join(d.dir, name))
		if err != nil {
			return err
		}
		second, err := release.SHA256(filepath.Join(again.dir, name))
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
	progressf("the second build has the same %d files", len(d.names)+1)
	return nil
}

// removeAll removes a folder in which files may be read-only, as in a cache of
// the go command.
func removeAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	if rmErr := os.RemoveAll(dir); err == nil {
		err = rmErr
	}
	return errors.WithStack(err)
}

// writeImages has a daemon of this repository build the images for all
// platforms.
func (d *distribution) writeImages(ctx context.Context) (retErr error) {
	archs := slices.Sorted(maps.Keys(release.Architectures))
	open := func(arch string) (*debian.Archive, error) { return d.archive(ctx, arch) }
	progressf("fetching packages of Debian")
	if err := d.images.Prepare(ctx, filepath.Join(d.opt.Root, "packaging", "image"), archs, open); err != nil {
		return err
	}
	d.dependDebian(d.images.Tools)
	own := release.File{Name: release.LicenseDir + "LICENSE", Path: filepath.Join(d.opt.Root, "LICENSE")}
	if err := d.images.AddLicenses(append(slices.Clip(d.licenses), own)); err != nil {
		return err
	}
	if _, err := buildBinaries(ctx, d.opt, false); err != nil {
		return err
	}
	bkd, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: testbed.Graphload, Quiet: true})
	if err != nil {
		return err
	}
	defer closeLast(bkd, &retErr)
	c, err := client.New(ctx, bkd.Addr)
	if err != nil {
		return errors.WithStack(err)
	}
	defer c.Close()
	for _, v := range release.Variants {
		suffix := "oci.tar"
		if v == release.Rootless {
			suffix = "rootless.oci.tar"
		}
		name := d.name(suffix)
		progressf("building %s", name)
		if err := d.images.Build(ctx, c, release.ImageOptions{
			Variant: v, Archs: archs, Name: imageName(d.opt, v),
			Output: filepath.Join(d.dir, name), Epoch: d.epoch, Labels: d.labels(),
		}); err != nil {
			return err
		}
		d.names = append(d.names, name)
		if err := release.CheckImage(filepath.Join(d.dir, name), archs); err != nil {
			return errors.Wrap(err, name)
		}
		for _, arch := range archs {
			if err := d.writeImageSBOM(name, v, arch); err != nil {
				return err
			}
			if v == release.Rootful {
				loadable := d.name("docker-" + arch + ".tar")
				if err := release.WriteDockerArchive(filepath.Join(d.dir, name), arch, imageName(d.opt, v), filepath.Join(d.dir, loadable)); err != nil {
					return err
				}
				d.names = append(d.names, loadable)
			}
		}
	}
	return nil
}

// imageName is the name that an image has when it is loaded. Its registry does
// not exist and never will (RFC 2606), because buildx first tries to pull what
// it then runs with all privileges, and takes the loaded image when it cannot.
func imageName(opt assemble.Options, v release.Variant) string {
	name := "graphload.invalid/buildkit:" + opt.Version
	if v == release.Rootless {
		name += "-rootless"
	}
	return name
}

func (d *distribution) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    "BuildKit with lazy solves loaded into the graph",
		"org.opencontainers.image.source":   "https://" + modulePath,
		"org.opencontainers.image.version":  version(d.opt),
		"org.opencontainers.image.revision": d.revision,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
}

func (d *distribution) writeImageSBOM(image string, v release.Variant, arch string) error {
	entries, err := os.ReadDir(d.images.BinDir(arch))
	if err != nil {
		return errors.WithStack(err)
	}
	var bins []release.Binary
	for _, e := range entries {
		if v == release.Rootful && e.Name() == "rootlesskit" {
			continue
		}
		bins = append(bins, release.Binary{Name: "usr/bin/" + e.Name(), Path: filepath.Join(d.images.BinDir(arch), e.Name()), Version: d.binaryVersion(e.Name())})
	}
	pkgs := d.images.PackagesOf(arch, v)
	d.dependDebian(pkgs)
	pkgs = append(pkgs, d.linked[arch]...)
	name := strings.TrimSuffix(image, ".oci.tar") + ".linux-" + arch + ".oci.spdx.json"
	sbom, err := release.SBOM(release.Contents{Name: image + " linux/" + arch, Version: version(d.opt), Revision: d.revision, Binaries: bins, Packages: pkgs, Created: d.epoch})
	if err != nil {
		return err
	}
	return d.writeFile(name, sbom)
}
