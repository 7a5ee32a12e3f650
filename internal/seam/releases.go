package seam

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/mod/semver"
)

var releaseRegexp = regexp.MustCompile(`^\s+["']?(v[^\s:"']+)["']?\s*:`)

// AddRelease adds a release of BuildKit with its checksum to the source of a seam
// list, newest first. All other bytes of the list, comments included, stay as they
// are.
func AddRelease(dt []byte, version, sum string) ([]byte, error) {
	if !semver.IsValid(version) {
		return nil, errors.Errorf("%q is not a version like v1.2.3", version)
	}
	old, err := Parse(dt)
	if err != nil {
		return nil, err
	}
	if _, ok := old.Releases[version]; ok {
		return nil, errors.Errorf("release %s is listed already", version)
	}

	lines := slices.Collect(bytes.Lines(dt))
	at, inside := -1, false
	for i, line := range lines {
		if bytes.HasPrefix(line, []byte("releases:")) {
			at, inside = i+1, true
			continue
		}
		m := releaseRegexp.FindSubmatch(line)
		if !inside || m == nil {
			inside = inside && (strings.TrimSpace(string(line)) == "" || bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")))
			continue
		}
		if semver.Compare(string(m[1]), version) > 0 {
			at = i + 1
		}
	}
	if at < 0 {
		return nil, errors.New("releases: is not the start of a line in the list")
	}
	lines = slices.Insert(lines, at, fmt.Appendf(nil, "  %s: %s\n", version, sum))
	out := bytes.Join(lines, nil)

	l, err := Parse(out)
	if err != nil || l.Releases[version] != sum || len(l.Releases) != len(old.Releases)+1 {
		return nil, errors.Errorf("releases are not a block with one release a line: add %s: %s by hand", version, sum)
	}
	return out, nil
}

// RemoveRelease removes a release of BuildKit from the source of a seam list. All other
// bytes of the list stay as they are.
func RemoveRelease(dt []byte, version string) ([]byte, error) {
	old, err := Parse(dt)
	if err != nil {
		return nil, err
	}
	if _, ok := old.Releases[version]; !ok {
		return nil, errors.Errorf("release %s is not listed", version)
	}
	inside := false // other modules can have a release of the same version
	lines := slices.DeleteFunc(slices.Collect(bytes.Lines(dt)), func(line []byte) bool {
		if !bytes.ContainsAny(line[:1], " \t#\r\n") {
			inside = bytes.HasPrefix(line, []byte("releases:"))
		}
		m := releaseRegexp.FindSubmatch(line)
		return inside && m != nil && string(m[1]) == version
	})
	out := bytes.Join(lines, nil)
	l, err := Parse(out)
	if err != nil || len(l.Releases) != len(old.Releases)-1 {
		return nil, errors.Errorf("releases are not a block with one release a line: remove %s by hand", version)
	}
	return out, nil
}
