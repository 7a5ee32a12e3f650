// Package release writes the files of a release: archives, images, their bills of
// materials and checksums. The same input produces the same bytes, at any time and in
// any folder.
package release

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/files"
	"github.com/pkg/errors"
)

// File is a regular file of an archive.
type File struct {
	Name string // slash-separated, below the prefix that the archive is unpacked to
	Path string // on disk
	Data []byte // instead of Path
	Mode os.FileMode
}

func (f File) content() ([]byte, error) {
	if f.Path == "" {
		return f.Data, nil
	}
	dt, err := os.ReadFile(f.Path)
	return dt, errors.WithStack(err)
}

// WriteArchive writes files as a compressed tar archive. The archive does not depend on
// the order of contents, or on owners and times on disk.
func WriteArchive(w io.Writer, contents []File, mtime time.Time) error {
	zw, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return errors.WithStack(err)
	}
	tw := tar.NewWriter(zw)
	written := map[string]bool{".": true}
	for _, f := range slices.SortedFunc(slices.Values(contents), func(a, b File) int { return strings.Compare(a.Name, b.Name) }) {
		if !filepath.IsLocal(f.Name) || path.Clean(f.Name) != f.Name {
			return errors.Errorf("%q is not the name of a file below the prefix", f.Name)
		}
		if written[f.Name] {
			return errors.Errorf("%s is twice in the archive", f.Name)
		}
		if err := writeParents(tw, f.Name, mtime, written); err != nil {
			return err
		}
		dt, err := f.content()
		if err != nil {
			return err
		}
		hdr := header(f.Name, tar.TypeReg, f.Mode, mtime)
		hdr.Size = int64(len(dt))
		if err := tw.WriteHeader(hdr); err != nil {
			return errors.WithStack(err)
		}
		if _, err := tw.Write(dt); err != nil {
			return errors.WithStack(err)
		}
		written[f.Name] = true
	}
	if err := tw.Close(); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(zw.Close())
}

// writeParents writes the folders above a name that it has not written yet, topmost
// first.
func writeParents(tw *tar.Writer, name string, mtime time.Time, written map[string]bool) error {
	dir := path.Dir(name)
	if written[dir] {
		return nil
	}
	if err := writeParents(tw, dir, mtime, written); err != nil {
		return err
	}
	written[dir] = true
	return errors.WithStack(tw.WriteHeader(header(dir+"/", tar.TypeDir, 0o755, mtime)))
}

func header(name string, typ byte, mode os.FileMode, mtime time.Time) *tar.Header {
	return &tar.Header{
		Format:   tar.FormatPAX,
		Typeflag: typ,
		Name:     name,
		Mode:     int64(mode.Perm()),
		Uname:    "root",
		Gname:    "root",
		ModTime:  mtime.Truncate(time.Second),
	}
}

// Checksums returns the checksums of files in a folder, in the format of sha256sum.
func Checksums(dir string, names []string) ([]byte, error) {
	var sb strings.Builder
	for _, name := range slices.Sorted(slices.Values(names)) {
		sum, err := files.SHA256(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&sb, "%s  %s\n", sum, name)
	}
	return []byte(sb.String()), nil
}
