package assemble

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/graphload/graphload/internal/seam"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

func TestSurvey(t *testing.T) {
	t.Parallel()
	release := func(version, jobs string) *upstream.Source {
		src := &upstream.Source{Version: version, Dir: t.TempDir()}
		require.NoError(t, os.MkdirAll(filepath.Join(src.Dir, "solver"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(src.Dir, "solver/jobs.go"), []byte("package solver\n\n"+jobs), 0o600))
		return src
	}
	from := release("v1.0.0", "func Held() {}\n\nfunc Moved() {}\n\nfunc Gone() {}\n\nfunc Altered() {\n\tHeld()\n}\n")
	require.NoError(t, os.Mkdir(filepath.Join(from.Dir, "session"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from.Dir, "session/any.go"), []byte("package session\n\nfunc Any() {}\n"), 0o600))
	to := release("v1.1.0", "func Held() {}\n\n// one more line\nfunc Moved() {}\n\nfunc (g *Group) Gone() {}\n\nfunc Altered() {\n\tMoved()\n}\n")

	var seams []*seam.Seam
	for _, name := range []string{"Held", "Moved", "Gone", "Altered"} {
		seams = append(seams, &seam.Seam{Name: name, Package: "solver", In: name, Rename: "x"})
	}
	seams = append(seams, &seam.Seam{Name: "Any", Package: "session", In: "Any", Rename: "x"})
	findings, err := Survey(from, to, seams)
	require.NoError(t, err)
	require.Equal(t, "1 held, 2 moved, 2 lost", Summary(findings))

	held, moved, gone, altered, folder := findings[0], findings[1], findings[2], findings[3], findings[4]
	require.Equal(t, Finding{Seam: seams[0], Fate: Held, Old: "solver/jobs.go:3", New: "solver/jobs.go:3"}, held)
	require.Equal(t, Finding{Seam: seams[1], Fate: Moved, Old: "solver/jobs.go:5", New: "solver/jobs.go:6"}, moved)
	require.Equal(t, Lost, gone.Fate)
	require.ErrorContains(t, gone.Err, "declaration Gone not found, there is Group.Gone at solver/jobs.go:8")
	require.Equal(t, Moved, altered.Fate)
	require.Contains(t, altered.Changes, "--- Altered in v1.0.0\n+++ Altered in v1.1.0\n")
	require.Contains(t, altered.Changes, "-\tHeld()\n+\tMoved()\n")
	require.Equal(t, Lost, folder.Fate)
	require.ErrorContains(t, folder.Err, "session")
}
