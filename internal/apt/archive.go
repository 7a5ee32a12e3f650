// Package apt installs packages of Debian, and fetches packages of any architecture with
// a separate apt configuration: fetching neither depends on the packages and sources of
// the machine nor changes them.
package apt

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// Release is the Debian release of the packages.
const Release = "bookworm"

// keyring has the keys that must have signed the indexes.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Mirror has the URLs of a release and its security updates.
type Mirror struct {
	Archive  string
	Security string
}

// DefaultMirror always has the current packages of the release.
var DefaultMirror = Mirror{Archive: "http://deb.debian.org/debian", Security: "http://deb.debian.org/debian-security"}

// Snapshot returns the mirror with the archives as of a time, like 20261123T000000Z.
func Snapshot(stamp string) Mirror {
	return Mirror{
		Archive:  "http://snapshot.debian.org/archive/debian/" + stamp,
		Security: "http://snapshot.debian.org/archive/debian-security/" + stamp,
	}
}

// Triplets are the names of architectures in paths and in the names of compilers.
var Triplets = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// Package is a binary package.
type Package struct {
	Name    string
	Version string
	Arch    string // of the package, may be all
	URL     string
	SHA256  string // hexadecimal
}

// PURL returns the package URL.
func (p Package) PURL() string {
	return fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-12", p.Name, url.QueryEscape(p.Version), p.Arch)
}

// File returns the name of the package's file.
func (p Package) File() string {
	return fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Arch)
}

// Archive has the packages of one architecture.
type Archive struct {
	arch string
	dir  string
}

// Open reads the indexes of an architecture. It keeps indexes and packages in dir.
func Open(ctx context.Context, dir, arch string, m Mirror) (*Archive, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, errors.Errorf("%s is missing: install debian-archive-keyring", keyring)
	}
	a := &Archive{arch: arch, dir: filepath.Join(dir, arch)}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "etc", "packages"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	// the indexes of a snapshot have expired
	options := "signed-by=" + keyring
	if strings.Contains(m.Archive, "snapshot.debian.org") {
		options += " check-valid-until=no"
	}
	sources := fmt.Sprintf("deb [%[1]s] %[2]s %[4]s main\ndeb [%[1]s] %[2]s %[4]s-updates main\ndeb [%[1]s] %[3]s %[4]s-security main\n", options, m.Archive, m.Security, Release)
	for name, content := range map[string]string{"etc/sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(content), 0o644); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	if _, err := a.apt(ctx, "-qq", "--error-on=any", "update"); err != nil {
		return nil, err
	}
	return a, nil
}

// apt runs apt-get in the folder that it downloads to.
func (a *Archive) apt(ctx context.Context, args ...string) ([]byte, error) {
	options := []string{
		"-o", "APT::Architecture=" + a.arch,
		"-o", "APT::Architectures=" + a.arch,
		"-o", "APT::Sandbox::User=root", // the user _apt may lack access to the folder
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "etc", "sources.list"),
		"-o", "Dir::Etc::sourceparts=-",
		"-o", "Acquire::ForceHash=SHA256",
		"-o", "Acquire::Languages=none",
	}
	cmd := exec.CommandContext(ctx, "apt-get", append(options, args...)...)
	cmd.Dir = a.archives()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dt, err := cmd.Output()
	return dt, errors.Wrapf(err, "apt-get %s for %s: %s", strings.Join(args, " "), a.arch, bytes.TrimSpace(stderr.Bytes()))
}

// archives returns the folder for packages. It is not the one that apt-get installs
// from, because --print-uris does not list packages in that.
func (a *Archive) archives() string {
	return filepath.Join(a.dir, "packages")
}

// Resolve returns packages and all their dependencies, ordered by name, except for those
// named in without.
func (a *Archive) Resolve(ctx context.Context, names, without []string) ([]Package, error) {
	dt, err := a.apt(ctx, append([]string{"-qq", "--print-uris", "--no-install-recommends", "-y", "install"}, names...)...)
	if err != nil {
		return nil, err
	}
	pkgs, err := parseURIs(dt)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pkgs, func(p Package) bool { return slices.Contains(without, p.Name) }), nil
}

// parseURIs reads lines of apt-get --print-uris: 'url' file size SHA256:digest.
func parseURIs(dt []byte) ([]Package, error) {
	var out []Package
	for line := range strings.Lines(string(dt)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 4 || !strings.HasSuffix(fields[1], ".deb") || !strings.HasPrefix(fields[3], "SHA256:") {
			return nil, errors.Errorf("not a package of apt-get: %s", line)
		}
		name, err := url.PathUnescape(strings.TrimSuffix(fields[1], ".deb"))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		parts := strings.Split(name, "_")
		if len(parts) != 3 {
			return nil, errors.Errorf("not the name of a package: %s", fields[1])
		}
		out = append(out, Package{
			Name: parts[0], Version: parts[1], Arch: parts[2],
			URL: strings.Trim(fields[0], "'"), SHA256: strings.TrimPrefix(fields[3], "SHA256:"),
		})
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Fetch downloads packages and returns their files in the same order.
func (a *Archive) Fetch(ctx context.Context, pkgs []Package) ([]string, error) {
	var debs, missing []string
	for _, p := range pkgs {
		file := filepath.Join(a.archives(), p.File())
		debs = append(debs, file)
		if sum, err := files.SHA256(file); err != nil || sum != p.SHA256 {
			missing = append(missing, p.Name+"="+p.Version)
		}
	}
	if len(missing) > 0 {
		if _, err := a.apt(ctx, append([]string{"-qq", "download"}, missing...)...); err != nil {
			return nil, err
		}
	}
	for i, p := range pkgs {
		sum, err := files.SHA256(debs[i])
		if err != nil {
			return nil, err
		}
		if sum != p.SHA256 {
			return nil, errors.Errorf("%s has checksum %s, not %s", p.File(), sum, p.SHA256)
		}
	}
	return debs, nil
}

// Unpack unpacks files of packages into dir.
func Unpack(ctx context.Context, dir string, debs ...string) error {
	for _, file := range debs {
		dt, err := exec.CommandContext(ctx, "dpkg-deb", "-x", file, dir).CombinedOutput()
		if err != nil {
			return errors.Wrapf(err, "dpkg-deb -x %s: %s", file, bytes.TrimSpace(dt))
		}
	}
	return nil
}
