package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	t.Parallel()
	findings, err := parse(strings.NewReader(`{"config":{"protocol_version":"v1.0.0"}}
{"osv":{"id":"GO-2","summary":"second"}}
{"osv":{"id":"GO-1","summary":"first"}}
{"osv":{"id":"GO-3","summary":"not in the binary"}}
{"finding":{"osv":"GO-2","fixed_version":"v1.2.4","trace":[{"module":"example.com/m","version":"v1.2.3"}]}}
{"finding":{"osv":"GO-2","fixed_version":"v1.2.4","trace":[{"module":"example.com/m","version":"v1.2.3","package":"example.com/m/p","receiver":"*T","function":"F"}]}}
{"finding":{"osv":"GO-2","fixed_version":"v1.2.4","trace":[{"module":"example.com/m","version":"v1.2.3","package":"example.com/m/p"}]}}
{"finding":{"osv":"GO-1","trace":[{"module":"stdlib","version":"go1.26"}]}}
`), "buildkitd")
	require.NoError(t, err)
	require.Equal(t, []Finding{
		{ID: "GO-1", Summary: "first", Module: "stdlib", Version: "go1.26", Binary: "buildkitd"},
		{ID: "GO-2", Summary: "second", Module: "example.com/m", Version: "v1.2.3", Fixed: "v1.2.4", Symbol: "example.com/m/p.*T.F", Binary: "buildkitd"},
	}, findings)

	path := filepath.Join(t.TempDir(), "verdicts.yaml")
	require.NoError(t, os.WriteFile(path, []byte("GO-1: only clients call it\n"), 0o600))
	v, err := LoadVerdicts(path)
	require.NoError(t, err)
	require.Equal(t, 1, v.Judge(findings))
	require.Equal(t, "only clients call it", findings[0].Verdict)
	require.Empty(t, findings[1].Verdict)

	_, err = parse(strings.NewReader("{"), "buildkitd")
	require.Error(t, err)
}

// TestOpen opens missing databases, which must differ from a database without reports.
func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"http://127.0.0.1:1", "file://" + dir, "example.invalid/without-version"} {
		_, err := Open(t.Context(), name)
		require.ErrorIs(t, err, ErrNoDatabase, name)
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "index"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index", "db.json"), []byte("{}"), 0o600))
	url, err := Open(t.Context(), "file://"+dir)
	require.NoError(t, err)
	require.Equal(t, "file://"+dir, url)
}
