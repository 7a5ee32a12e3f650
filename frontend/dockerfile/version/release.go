package version

import "strings"

// releaseOf returns the version of the release that a daemon is built from. The
// +metadata of a version names our change; it does not mark a pre-release, which is
// what provenance would take it for.
func releaseOf(version string) string {
	return strings.TrimSuffix(version, "+graphload")
}
