package conformance

import (
	"archive/tar"
	"bytes"
	"embed"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// stamp is the time of all files in the images, so that each run has the same images.
var stamp = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)

// image stands in for an image that the tests name, with the content that they check.
type image struct {
	ref   string // below the mirror registry
	build func(*busybox, string) (v1.Image, error)
}

// images are the images that the tests of all suites take from the mirror. The
// harness pulls images that the mirror lacks, and fails as a whole if it cannot.
var images = []image{
	{"library/busybox:latest", busyboxImage},
	{"library/busybox:stable-musl", busyboxImage},
	{"library/busybox_amd64:latest", busyboxImage},
	{"library/alpine:latest", alpineImage},
	{"amd64/debian:bullseye-20230109-slim", busyboxImage}, // needed to start tests that compare its digest
	{"tonistiigi/hellofs:latest", busyboxImage},
	{"tonistiigi/test:nolayers", noLayersImage},
	{"cpuguy83/buildkit-foreign:latest", foreignImage},
}

// busybox is the static busybox of this machine.
type busybox struct {
	binary  []byte
	applets []string // with path, without leading slash
}

func findBusybox() (*busybox, error) {
	name, err := exec.LookPath("busybox")
	if err != nil {
		return nil, errors.Wrap(err, "install busybox-static")
	}
	if err := files.CheckStatic(name); err != nil {
		return nil, err
	}
	b := &busybox{}
	if b.binary, err = os.ReadFile(name); err != nil {
		return nil, errors.WithStack(err)
	}
	dt, err := exec.Command(name, "--list-full").Output() //nolint:noctx // only prints
	if err != nil {
		return nil, errors.Wrapf(err, "%s --list-full", name)
	}
	b.applets = strings.Fields(string(dt))
	return b, nil
}

// scripts stand in for applets that Debian's busybox does not have, and for apk.
//
//go:embed rootfs
var scripts embed.FS

// scriptApplets are the applets among the scripts, in the format of busybox.applets.
var scriptApplets = []string{"usr/sbin/adduser", "usr/sbin/addgroup", "usr/bin/ttysize"}

const (
	rootUser  = "root:x:0:0:root:/root:/bin/sh\n"
	mailUser  = "mail:x:8:8:mail:/var/spool/mail:/bin/false\n"
	lastUser  = "nobody:x:65534:65534:nobody:/home:/bin/false\n"
	rootGroup = "root:x:0:\n"
	moreGroup = "daemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\nmail:x:8:\nwheel:x:10:root\nusers:x:100:\nnobody:x:65534:\n"
)

// busyboxImage returns an image with every applet in /bin, as hard links.
func busyboxImage(b *busybox, _ string) (v1.Image, error) {
	r := newRootfs()
	r.dirs("bin", "dev", "etc", "home", "lib", "usr/bin", "usr/sbin", "var/spool/mail", "var/www")
	r.dir("root", 0o700)
	r.dir("tmp", 0o1777)
	r.file("bin/busybox", 0o755, b.binary)
	for _, a := range b.applets {
		if name := path.Base(a); name != "busybox" {
			r.link("bin/"+name, "bin/busybox")
		}
	}
	for _, a := range scriptApplets {
		r.script("bin/" + path.Base(a))
	}
	r.symlink("usr/bin/env", "../../bin/env")
	r.file("etc/passwd", 0o644, []byte(rootUser+"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"+mailUser+lastUser))
	r.file("etc/group", 0o644, []byte(rootGroup+moreGroup))
	r.file("etc/shadow", 0o600, []byte("root:*:::::::\n"))
	return r.image("sh")
}

// packages are the packages that the tests install with apk, with their programs.
var packages = map[string][]string{
	"git":     {"git"},
	"openssh": {"ssh", "ssh-add", "ssh-keygen"},
}

// alpineImage returns an image with the layout of Alpine and the applets in their
// places. It needs no network for packages: its apk installs this machine's programs
// from a folder of the image, and fails for other packages.
func alpineImage(b *busybox, _ string) (v1.Image, error) {
	r := newRootfs()
	r.dirs("bin", "dev", "etc/apk", "home", "lib/apk/db", "media", "mnt", "opt", "proc", "run", "sbin", "srv", "sys", "usr/bin", "usr/sbin", "usr/local/bin", "var/cache/apk", "var/lib", "var/log")
	r.dir("root", 0o700)
	r.dir("tmp", 0o1777)
	r.dir("var/tmp", 0o1777)
	r.file("bin/busybox", 0o755, b.binary)
	for _, a := range b.applets {
		if path.Base(a) != "busybox" {
			r.dirs(path.Dir(a))
			r.symlink(a, "/bin/busybox")
		}
	}
	for _, a := range scriptApplets {
		r.script(a)
	}
	r.script("sbin/apk")
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		dt, err := packageFiles(packages[name])
		if err != nil {
			return nil, err
		}
		r.file("var/cache/apk/"+name+".tar", 0o644, dt)
	}
	r.file("etc/alpine-release", 0o644, []byte("3.18.2\n"))
	r.dirs("etc/ssl/certs")
	r.file("etc/ssl/certs/ca-certificates.crt", 0o644, []byte("# none\n"))
	r.file("etc/os-release", 0o644, []byte("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.2\nPRETTY_NAME=\"Alpine Linux v3.18\"\n"))
	r.file("etc/passwd", 0o644, []byte(rootUser+"daemon:x:2:2:daemon:/sbin:/sbin/nologin\n"+mailUser+lastUser))
	r.file("etc/group", 0o644, []byte(rootGroup+moreGroup))
	r.file("etc/shadow", 0o640, []byte("root:*::0:::::\n"))
	return r.image("/bin/sh")
}

var sharedLibrary = regexp.MustCompile(`(/\S+) \(0x`)

// packageFiles returns an archive of programs of this machine and the libraries that
// they load.
func packageFiles(programs []string) ([]byte, error) {
	r := newRootfs()
	for _, program := range programs {
		name, err := exec.LookPath(program)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		dt, err := exec.Command("ldd", name).Output() //nolint:noctx // only prints
		if err != nil {
			return nil, errors.Wrapf(err, "ldd %s", name)
		}
		files := map[string]string{name: "usr/bin/" + program}
		for _, m := range sharedLibrary.FindAllStringSubmatch(string(dt), -1) {
			files[m[1]] = strings.TrimPrefix(m[1], "/")
		}
		for _, src := range slices.Sorted(maps.Keys(files)) {
			dt, err := os.ReadFile(src)
			if err != nil {
				return nil, errors.WithStack(err)
			}
			r.dirs(path.Dir(files[src]))
			r.file(files[src], 0o755, dt)
		}
	}
	err := r.close()
	return r.buf.Bytes(), err
}

// noLayersImage returns an image with a configuration and no layers.
func noLayersImage(*busybox, string) (v1.Image, error) {
	return configure(empty.Image)
}

// foreignImage returns an image with a layer that is not in a registry but at a URL,
// and an ordinary layer on top. Neither is compressed.
func foreignImage(_ *busybox, url string) (v1.Image, error) {
	foreign, ordinary := newRootfs(), newRootfs()
	foreign.file("foreign", 0o644, []byte("foreign\n"))
	ordinary.file("ordinary", 0o644, []byte("ordinary\n"))
	var layers []v1.Layer
	for _, r := range []*rootfs{foreign, ordinary} {
		if err := r.close(); err != nil {
			return nil, err
		}
		layers = append(layers, static.NewLayer(r.buf.Bytes(), types.DockerUncompressedLayer))
	}
	img, err := mutate.Append(empty.Image,
		mutate.Addendum{Layer: layers[0], MediaType: foreignLayer, URLs: []string{url}},
		mutate.Addendum{Layer: layers[1], MediaType: types.DockerUncompressedLayer},
	)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return configure(img)
}

// foreignLayer is types.DockerForeignLayer without compression.
const foreignLayer types.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar"

// configure returns img with a configuration for linux/amd64.
func configure(img v1.Image, cmd ...string) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Created = v1.Time{Time: stamp}
	cf.Config.Cmd = cmd
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	img, err = mutate.ConfigFile(img, cf)
	return img, errors.WithStack(err)
}

// rootfs writes a layer. It keeps the first error.
type rootfs struct {
	buf  bytes.Buffer
	tar  *tar.Writer
	seen map[string]struct{}
	err  error
}

func newRootfs() *rootfs {
	r := &rootfs{seen: map[string]struct{}{}}
	r.tar = tar.NewWriter(&r.buf)
	return r
}

func (r *rootfs) add(hdr *tar.Header, dt []byte) {
	if _, ok := r.seen[strings.TrimSuffix(hdr.Name, "/")]; ok || r.err != nil {
		return
	}
	r.seen[strings.TrimSuffix(hdr.Name, "/")] = struct{}{}
	hdr.ModTime = stamp
	hdr.Size = int64(len(dt))
	if r.err = r.tar.WriteHeader(hdr); r.err == nil {
		_, r.err = r.tar.Write(dt)
	}
}

// dirs adds folders and their parents.
func (r *rootfs) dirs(names ...string) {
	for _, name := range names {
		if name == "." {
			continue
		}
		r.dirs(path.Dir(name))
		r.dir(name, 0o755)
	}
}

func (r *rootfs) dir(name string, mode int64) {
	r.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (r *rootfs) file(name string, mode int64, dt []byte) {
	r.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, dt)
}

// script adds the script that has the name of the file.
func (r *rootfs) script(name string) {
	dt, err := scripts.ReadFile("rootfs/" + path.Base(name))
	if r.err == nil {
		r.err = err
	}
	r.dirs(path.Dir(name))
	r.file(name, 0o755, dt)
}

func (r *rootfs) link(name, target string) {
	r.add(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}, nil)
}

func (r *rootfs) symlink(name, target string) {
	r.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (r *rootfs) close() error {
	if r.err == nil {
		r.err = r.tar.Close()
	}
	return errors.WithStack(r.err)
}

func (r *rootfs) image(cmd ...string) (v1.Image, error) {
	if err := r.close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(r.buf.Bytes())), nil
	})
	if err != nil {
		return nil, errors.WithStack(err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   l,
		History: v1.History{Created: v1.Time{Time: stamp}, CreatedBy: "graphload conformance"},
	})
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return configure(img, cmd...)
}
