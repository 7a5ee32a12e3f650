package release

import (
	"context"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/files"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/pkg/errors"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// Variant is one of the images.
type Variant string

// The images, named as the stages of the Dockerfile.
const (
	Rootful  Variant = "buildkit"
	Rootless Variant = "rootless"
)

// Variants are all images.
var Variants = []Variant{Rootful, Rootless}

// imagePackages are the packages of the images, by folder of the context. Resolve adds
// their dependencies.
var imagePackages = map[string][]string{
	"all": {
		"busybox-static", "ca-certificates", "dash", "fuse3", "fuse-overlayfs", "git", "netbase",
		"openssh-client", "openssl", "pigz", "xz-utils", "util-linux",
	},
	"root":     {"iptables"},
	"rootless": {"uidmap"},
}

// notInImage are dependencies that only maintainer scripts run, or that belong to parts
// that a builder does not use, such as git's commands in Perl.
var notInImage = []string{
	"adduser", "debconf", "debianutils", "dpkg", "git-man", "liberror-perl", "libgdbm-compat4", "libgdbm6", "libpam-modules",
	"libpam-modules-bin", "libperl5.36", "libsemanage-common", "mount", "passwd",
	"perl", "perl-base", "perl-modules-5.36", "sed", "tar", "util-linux-extra",
}

// ImageContext is the build context of the images.
type ImageContext struct {
	Dir      string
	Packages map[string]map[string][]apt.Package // by architecture and folder
	Tools    []apt.Package                       // which unpack the packages, and are not in the images
}

// NewImageContext returns a context in the folder dir, which it empties.
func NewImageContext(dir string) (*ImageContext, error) {
	return &ImageContext{Dir: dir}, files.Empty(dir)
}

// BinDir returns the folder with binaries for an architecture.
func (c *ImageContext) BinDir(arch string) string {
	return filepath.Join(c.Dir, arch, "bin")
}

// PackagesOf returns the packages of an image.
func (c *ImageContext) PackagesOf(arch string, v Variant) []apt.Package {
	folder := "root"
	if v == Rootless {
		folder = "rootless"
	}
	return slices.Concat(c.Packages[arch]["all"], c.Packages[arch][folder])
}

// AddLicenses puts licenses into the context.
func (c *ImageContext) AddLicenses(licenses []File) error {
	dir := filepath.Join(c.Dir, "licenses")
	if err := files.Empty(dir); err != nil {
		return err
	}
	for _, f := range licenses {
		dt, err := f.content()
		if err != nil {
			return err
		}
		dst := filepath.Join(dir, path.Base(f.Name))
		if err := os.WriteFile(dst, dt, 0o644); err != nil {
			return errors.WithStack(err)
		}
		if err := os.Chmod(dst, 0o644); err != nil { // regardless of the umask
			return errors.WithStack(err)
		}
	}
	return nil
}

// Prepare puts scripts, and the packages of the architectures, into the context. source
// is the folder of the Dockerfile. open returns the archive of an architecture.
func (c *ImageContext) Prepare(ctx context.Context, source string, archs []string, open func(arch string) (*apt.Archive, error)) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return errors.WithStack(err)
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, e := range entries {
		if err := files.Copy(filepath.Join(source, e.Name()), filepath.Join(c.Dir, e.Name()), 0o644); err != nil {
			return err
		}
	}
	c.Packages = map[string]map[string][]apt.Package{}
	for _, arch := range archs {
		a, err := open(arch)
		if err != nil {
			return err
		}
		if err := c.addPackages(ctx, a, arch); err != nil {
			return err
		}
	}
	a, err := open(runtime.GOARCH)
	if err != nil {
		return err
	}
	return c.addTools(ctx, a)
}

func (c *ImageContext) addPackages(ctx context.Context, a *apt.Archive, arch string) error {
	byFolder := map[string][]apt.Package{}
	c.Packages[arch] = byFolder
	for _, folder := range []string{"all", "root", "rootless"} {
		pkgs, err := a.Resolve(ctx, imagePackages[folder], notInImage)
		if err != nil {
			return err
		}
		if folder != "all" {
			pkgs = slices.DeleteFunc(pkgs, func(p apt.Package) bool { return slices.Contains(byFolder["all"], p) })
		}
		byFolder[folder] = pkgs
		debs, err := a.Fetch(ctx, pkgs)
		if err != nil {
			return err
		}
		dir := filepath.Join(c.Dir, arch, "debs", folder)
		if err := files.Empty(dir); err != nil {
			return err
		}
		for _, file := range debs {
			if err := files.Copy(file, filepath.Join(dir, filepath.Base(file)), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// toolPackages are the packages whose commands unpack packages and set capabilities of
// files, on the machine that builds.
var toolPackages = []string{"busybox-static", "libcap2-bin"}

// addTools adds the root filesystem of the stage that unpacks packages.
func (c *ImageContext) addTools(ctx context.Context, a *apt.Archive) error {
	pkgs, err := a.Resolve(ctx, toolPackages, notInImage)
	if err != nil {
		return err
	}
	debs, err := a.Fetch(ctx, pkgs)
	if err != nil {
		return err
	}
	c.Tools = pkgs
	dir := filepath.Join(c.Dir, "tools")
	if err := files.Empty(dir); err != nil {
		return err
	}
	return apt.Unpack(ctx, dir, debs...)
}

// ImageOptions describe an image to build from a context.
type ImageOptions struct {
	Variant Variant
	Archs   []string
	Name    string    // of the image
	Output  string    // file
	Epoch   time.Time // time of all files, if set
	Labels  map[string]string
}

// Build makes a daemon build an image as an OCI archive.
func (c *ImageContext) Build(ctx context.Context, bk *client.Client, opt ImageOptions) error {
	local, err := fsutil.NewFS(c.Dir)
	if err != nil {
		return errors.WithStack(err)
	}
	out, err := os.Create(opt.Output)
	if err != nil {
		return errors.WithStack(err)
	}
	var platforms []string
	for _, arch := range opt.Archs {
		platforms = append(platforms, "linux/"+arch)
	}
	attrs := map[string]string{"target": string(opt.Variant), "platform": strings.Join(platforms, ",")}
	exporter := map[string]string{"name": opt.Name}
	if !opt.Epoch.IsZero() {
		attrs["build-arg:SOURCE_DATE_EPOCH"] = strconv.FormatInt(opt.Epoch.Unix(), 10)
		exporter["rewrite-timestamp"] = "true"
	}
	for k, v := range opt.Labels {
		attrs["label:"+k] = v
	}
	ch := make(chan *client.SolveStatus)
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error {
		_, err := bk.Solve(ctx, nil, client.SolveOpt{
			Frontend:      "dockerfile.v0",
			FrontendAttrs: attrs,
			LocalMounts:   map[string]fsutil.FS{"context": local, "dockerfile": local},
			Exports: []client.ExportEntry{{
				Type:   client.ExporterOCI,
				Attrs:  exporter,
				Output: func(map[string]string) (io.WriteCloser, error) { return out, nil },
			}},
		}, ch)
		return errors.WithStack(err)
	})
	eg.Go(func() error {
		display, err := progressui.NewDisplay(os.Stderr, progressui.PlainMode)
		if err != nil {
			return errors.WithStack(err)
		}
		_, err = display.UpdateFrom(context.WithoutCancel(ctx), ch)
		return errors.WithStack(err)
	})
	return eg.Wait()
}

// Shipped returns the binaries of the last release, or of the last build.
func Shipped(root string) (bins []string, _ error) {
	var patterns []string
	for _, arch := range slices.Sorted(maps.Keys(Architectures)) {
		patterns = append(patterns, filepath.Join(root, "build", "dist", "context", arch, "bin", "*"), filepath.Join(root, "build", "dist", "engine", arch, "*"))
	}
	for _, patterns := range [][]string{patterns, {filepath.Join(root, "bin", "build*")}} {
		for _, pattern := range patterns {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, errors.WithStack(err)
			}
			bins = append(bins, found...)
		}
		if len(bins) > 0 {
			return bins, nil
		}
	}
	return nil, errors.New("there are no binaries: run graphload dist, or graphload build")
}
