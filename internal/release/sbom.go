package release

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/apt"
	"github.com/graphload/graphload/internal/build"
	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"golang.org/x/mod/modfile"
)

// Binary is a Go binary of an archive or image.
type Binary struct {
	Name    string // in the archive
	Path    string // on disk
	Version string
}

// Contents are the contents of an archive or image, for its bill of materials.
type Contents struct {
	Name     string // of the archive or image
	Version  string
	Revision string // of the repository
	Binaries []Binary
	Packages []apt.Package // in the archive or image, or linked into a binary
	Created  time.Time
}

var notID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func elementID(kind, name, version string) common.ElementID {
	return common.ElementID(notID.ReplaceAllString(kind+"-"+name+"-"+version, "-"))
}

// SBOM returns the bill of materials of an archive or image as an SPDX document in
// JSON. It reads the modules of a binary from the binary.
func SBOM(c Contents) ([]byte, error) {
	root := newPackage(elementID("Archive", c.Name, ""), c.Name, c.Version)
	root.PackageSourceInfo = "revision " + c.Revision
	root.PackageLicenseDeclared = "Apache-2.0"
	doc := &v2_3.Document{
		SPDXVersion:    v2_3.Version,
		DataLicense:    v2_3.DataLicense,
		SPDXIdentifier: "DOCUMENT",
		DocumentName:   c.Name,
		CreationInfo: &v2_3.CreationInfo{
			Created:  c.Created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "graphload-dist"}},
		},
		Packages: []*v2_3.Package{root},
	}
	relate := func(a common.ElementID, kind string, b common.ElementID) {
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA: common.DocElementID{ElementRefID: a}, Relationship: kind, RefB: common.DocElementID{ElementRefID: b},
		})
	}
	relate("DOCUMENT", common.TypeRelationshipDescribe, root.PackageSPDXIdentifier)

	modules := map[common.ElementID]*v2_3.Package{}
	digests := ""
	for _, b := range slices.SortedFunc(slices.Values(c.Binaries), func(a, b Binary) int { return cmp.Compare(a.Name, b.Name) }) {
		sum, err := files.SHA256(b.Path)
		if err != nil {
			return nil, err
		}
		digests += sum
		pkg := newPackage(elementID("Binary", b.Name, ""), b.Name, b.Version)
		pkg.PackageFileName = b.Name
		pkg.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: sum}}
		pkg.PrimaryPackagePurpose = "APPLICATION"
		doc.Packages = append(doc.Packages, pkg)
		relate(root.PackageSPDXIdentifier, common.TypeRelationshipContains, pkg.PackageSPDXIdentifier)

		mods, err := goModules(b)
		if err != nil {
			return nil, err
		}
		for _, m := range mods {
			modules[m.PackageSPDXIdentifier] = m
			relate(pkg.PackageSPDXIdentifier, common.TypeRelationshipDependsOn, m.PackageSPDXIdentifier)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		doc.Packages = append(doc.Packages, modules[id])
	}
	for _, p := range c.Packages {
		digests += p.SHA256
		pkg := purlPackage("Debian", p.Name, p.Version, p.PURL())
		pkg.PackageSPDXIdentifier = elementID("Debian", p.Name, p.Arch)
		pkg.PackageDownloadLocation = p.URL
		pkg.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: p.SHA256}}
		doc.Packages = append(doc.Packages, pkg)
		relate(root.PackageSPDXIdentifier, common.TypeRelationshipContains, pkg.PackageSPDXIdentifier)
	}
	// a unique name for these contents
	doc.DocumentNamespace = fmt.Sprintf("https://github.com/graphload/graphload/spdx/%s-%.16x", c.Name, sha256.Sum256([]byte(digests)))

	var buf bytes.Buffer
	if err := spdxjson.Write(doc, &buf, spdxjson.Indent("  "), spdxjson.EscapeHTML(false)); err != nil {
		return nil, errors.WithStack(err)
	}
	return buf.Bytes(), nil
}

// goModules returns the modules that a binary is built from, and the standard library.
func goModules(b Binary) ([]*v2_3.Package, error) {
	info, err := buildinfo.ReadFile(b.Path)
	if err != nil {
		return nil, errors.Wrapf(err, "%s has no build information", b.Path)
	}
	out := []*v2_3.Package{
		purlPackage("Go", "stdlib", strings.TrimPrefix(info.GoVersion, "go"), "pkg:golang/stdlib@"+strings.TrimPrefix(info.GoVersion, "go")),
	}
	mods := info.Deps
	if info.Main.Path != "" {
		main := info.Main
		main.Version = b.Version
		mods = append(mods, &main)
	}
	for _, m := range mods {
		switch {
		case m.Replace == nil:
		case !modfile.IsDirectoryPath(m.Replace.Path):
			m = m.Replace
		default: // the assembled tree of the release
			m = &debug.Module{Path: m.Path, Version: m.Version + build.Suffix}
		}
		pkg := purlPackage("Go", m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version)
		if dt, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && m.Sum != "" {
			// this checksum is not of one file but of a list of files
			pkg.PackageComment = "dirhash h1 (SHA-256) " + hex.EncodeToString(dt)
		}
		out = append(out, pkg)
	}
	return out, nil
}

// newPackage returns a package without statements about its license and source.
func newPackage(id common.ElementID, name, version string) *v2_3.Package {
	const unknown = "NOASSERTION"
	return &v2_3.Package{
		PackageName: name, PackageSPDXIdentifier: id, PackageVersion: version, PackageDownloadLocation: unknown,
		PackageLicenseConcluded: unknown, PackageLicenseDeclared: unknown, PackageCopyrightText: unknown,
	}
}

func purlPackage(kind, name, version, purl string) *v2_3.Package {
	pkg := newPackage(elementID(kind, name, version), name, version)
	pkg.PackageExternalReferences = []*v2_3.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl,
	}}
	return pkg
}
