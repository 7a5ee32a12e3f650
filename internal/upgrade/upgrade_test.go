package upgrade

import (
	"archive/zip"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// fakeProxy serves releases of a BuildKit that is a few lines long.
func fakeProxy(t *testing.T, releases map[string]string) {
	dir := t.TempDir()
	at := filepath.Join(dir, upstream.Module, "@v")
	require.NoError(t, os.MkdirAll(at, 0o755))
	for version, jobs := range releases {
		gomod := "module " + upstream.Module + "\n\ngo 1.26\n"
		require.NoError(t, os.WriteFile(filepath.Join(at, version+".mod"), []byte(gomod), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(at, version+".info"), []byte(`{"Version":"`+version+`"}`), 0o600))
		f, err := os.Create(filepath.Join(at, version+".zip"))
		require.NoError(t, err)
		zw := zip.NewWriter(f)
		for name, content := range map[string]string{"go.mod": gomod, "solver/jobs.go": jobs} {
			w, err := zw.Create(upstream.Module + "@" + version + "/" + name)
			require.NoError(t, err)
			_, err = w.Write([]byte(content))
			require.NoError(t, err)
		}
		require.NoError(t, zw.Close())
		require.NoError(t, f.Close())
	}
	list := strings.Join(slices.Collect(maps.Keys(releases)), "\n") + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(at, "list"), []byte(list), 0o600))
	t.Setenv("GOPROXY", "file://"+dir)
	t.Setenv("GONOSUMDB", "*")
	t.Setenv("GOFLAGS", "-modcacherw")
	t.Setenv("GOMODCACHE", filepath.Join(t.TempDir(), "mod"))
}

const fakeSeams = `# the list
releases: # sums
seams:
  - {name: discard, package: solver, in: Discard, rename: discard, why: owners go with the job}
  - {name: merge, package: solver, in: Merge, rename: merge, why: owners are handed on}
`

func TestUpgrade(t *testing.T) {
	fakeProxy(t, map[string]string{
		"v1.0.0": "package solver\n\nfunc Discard() {}\n\nfunc Merge() {}\n",
		"v1.1.0": "package solver\n\nfunc Discard() { Merge() }\n\n// more\nfunc Merge() {}\n",
		"v1.2.0": "package solver\n\nfunc Discard() {}\n\nfunc (s *State) Merge() {}\n",
	})
	root := t.TempDir()
	path := filepath.Join(root, assemble.SeamList)
	require.NoError(t, os.WriteFile(path, []byte(fakeSeams), 0o600))

	// try calls trial if no seam is lost, as Run does
	try := func(version string, trial func() error) (*upgrade, string) {
		u := &upgrade{from: "v1.0.0"}
		require.NoError(t, u.survey(t.Context(), assemble.Options{Root: root, Version: version}))
		var out strings.Builder
		require.NoError(t, u.reportSeams(&out))
		if len(u.lost()) == 0 && trial != nil {
			require.Equal(t, trial(), u.whileListed(func() error {
				require.Contains(t, releases(t, path), version)
				return trial()
			}))
		}
		u.reportRest(&out, nil)
		return u, out.String()
	}
	served := func() error { return nil }
	errBroken := errors.New("does not compile")
	broken := func() error { return errBroken }

	u, out := try("v1.0.0", served)
	require.True(t, u.added)
	require.Contains(t, out, "seams: 2 held, 0 moved, 0 lost")
	require.Contains(t, out, "1. v1.0.0 is listed in seams.yaml from now on: commit the line.")

	u, out = try("v1.0.0", broken)
	require.False(t, u.added, "it is known now")
	require.True(t, strings.HasSuffix(out, "To look at:\nnothing\n"), out)
	require.Equal(t, []string{"v1.0.0"}, releases(t, path), "what was listed stays")

	for _, trial := range []func() error{nil, broken} { // --seams-only, and a release that does not compile
		u, _ = try("v1.1.0", trial)
		require.False(t, u.added)
		require.Equal(t, []string{"v1.0.0"}, releases(t, path))
	}

	u, out = try("v1.1.0", served)
	require.True(t, u.added)
	require.Empty(t, u.lost())
	require.Contains(t, out, "seams: 1 held, 1 moved, 0 lost")
	require.Contains(t, out, "discard  held   solver/jobs.go:3  solver/jobs.go:3  changed\n")
	require.Contains(t, out, "merge    moved  solver/jobs.go:5  solver/jobs.go:6  same\n")
	require.Contains(t, out, "1. Upstream changed Discard in solver. Does seam discard still do what it is for: owners go with the job?")
	require.Contains(t, out, "+func Discard() { Merge() }\n")
	require.Contains(t, out, "2. v1.1.0 is listed in seams.yaml from now on: commit the line.")

	u, out = try("v1.2.0", served)
	require.Equal(t, []string{"merge"}, u.lost())
	require.False(t, u.added)
	require.Contains(t, out, "Seam merge is lost: package solver: declaration Merge not found, there is State.Merge at solver/jobs.go:5")
	require.Contains(t, out, "It is there because owners are handed on.")
	require.NotContains(t, out, "is listed")

	dt, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Regexp(t, `(?s)^# the list\nreleases: # sums\n  v1\.1\.0: h1:\S+\n  v1\.0\.0: h1:\S+\nseams:\n  - \{name: discard`, string(dt))

	// v1.1 is a query: the newest v1.1 release may change
	err = (&upgrade{from: "v1.0.0"}).survey(t.Context(), assemble.Options{Root: root, Version: "v1.1"})
	require.ErrorContains(t, err, `"v1.1" is not a release but stands for v1.1.0`)

	// survey refuses a source whose checksum is not the recorded one
	sum := strings.Replace(string(dt), "v1.1.0: h1:", "v1.1.0: h1:A", 1)
	require.NoError(t, os.WriteFile(path, []byte(sum), 0o600))
	err = (&upgrade{from: "v1.0.0"}).survey(t.Context(), assemble.Options{Root: root, Version: "v1.1.0"})
	require.ErrorContains(t, err, "checksum of github.com/moby/buildkit@v1.1.0 is")
	require.NoFileExists(t, path+".tmp")
}

// releases returns the releases of a seam list.
func releases(t *testing.T, path string) []string {
	list, err := seam.Load(path)
	require.NoError(t, err)
	return slices.Sorted(maps.Keys(list.Releases))
}
