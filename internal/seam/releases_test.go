package seam

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAddRelease(t *testing.T) {
	t.Parallel()
	const list = "# head\nreleases: # sums\n  v1.2.0: h1:b # current\n  # old\n  v1.0.0: h1:a\n\nseams:\n- {name: a, package: p, in: T, why: w, add-field: f int} # a field\n"
	for version, want := range map[string]string{
		"v1.3.0":     "# head\nreleases: # sums\n  v1.3.0: h1:new\n  v1.2.0: h1:b # current\n  # old\n  v1.0.0: h1:a\n",
		"v1.2.0-rc1": "# head\nreleases: # sums\n  v1.2.0: h1:b # current\n  v1.2.0-rc1: h1:new\n  # old\n  v1.0.0: h1:a\n",
		"v0.9.0":     "# head\nreleases: # sums\n  v1.2.0: h1:b # current\n  # old\n  v1.0.0: h1:a\n  v0.9.0: h1:new\n",
	} {
		got, err := AddRelease([]byte(list), version, "h1:new")
		require.NoError(t, err)
		require.Equal(t, want+"\nseams:\n- {name: a, package: p, in: T, why: w, add-field: f int} # a field\n", string(got))
	}
	for _, tc := range []struct{ list, version, err string }{
		{list, "v1.2.0", "release v1.2.0 is listed already"},
		{list, "1.2", `"1.2" is not a version`},
		{"seams: []\n", "v1.0.0", "releases: is not the start of a line"},
		{"releases: {v1.0.0: h1:a}\n", "v1.1.0", "add v1.1.0: h1:new by hand"},
		{"seams: [1", "v1.0.0", "did not find expected"},
	} {
		_, err := AddRelease([]byte(tc.list), tc.version, "h1:new")
		require.ErrorContains(t, err, tc.err)
	}
}

func TestRemoveRelease(t *testing.T) {
	t.Parallel()
	const list = "# v1.2.0: h1:b\nreleases: # sums\n  v1.2.0: h1:b # current\n# old\n  \"v1.0.0\": h1:a\n\nseams:\n- {name: a, package: p, in: T, why: w, add-field: f int}\n" +
		"modules:\n  other:\n    path: example.com/other\n    releases:\n      v1.2.0: h1:c\n"
	for version, line := range map[string]string{
		"v1.2.0": "  v1.2.0: h1:b # current\n",
		"v1.0.0": "  \"v1.0.0\": h1:a\n",
	} {
		got, err := RemoveRelease([]byte(list), version)
		require.NoError(t, err)
		require.Equal(t, strings.Replace(list, line, "", 1), string(got))
	}
	added, err := AddRelease([]byte(list), "v1.1.0", "h1:new")
	require.NoError(t, err)
	got, err := RemoveRelease(added, "v1.1.0")
	require.NoError(t, err)
	require.Equal(t, list, string(got))

	_, err = RemoveRelease([]byte(list), "v1.1.0")
	require.EqualError(t, err, "release v1.1.0 is not listed")
	_, err = RemoveRelease([]byte("releases: {v1.0.0: h1:a}\n"), "v1.0.0")
	require.ErrorContains(t, err, "remove v1.0.0 by hand")
}
