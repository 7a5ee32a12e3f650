package version

import "strings"

// releaseOf returns the version of the release that a daemon is built from.
// The build metadata of this one says which change it carries and not that it
// is on the way to another release, which is what provenance would take it for.
func releaseOf(version string) string {
	return strings.TrimSuffix(version, "+graphload")
}
