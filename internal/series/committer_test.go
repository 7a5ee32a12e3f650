package series

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCommitter(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("GIT_CONFIG_SYSTEM", os.DevNull)
	for _, name := range []string{"GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"} {
		t.Setenv(name, "commit")
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	git("init", "-q")
	git("commit", "-q", "--allow-empty", "-m", "first", "--date", "2026-11-26T08:00:00Z")

	_, _, err := Committer(t.Context(), dir)
	require.ErrorContains(t, err, "set user.name and user.email")
	git("config", "user.name", "Some One")
	_, _, err = Committer(t.Context(), dir)
	require.ErrorContains(t, err, "set user.name and user.email")
	git("config", "user.email", "some@one.example")
	p, date, err := Committer(t.Context(), dir)
	require.NoError(t, err)
	require.Equal(t, Person{Name: "Some One", Email: "some@one.example"}, p)
	require.Equal(t, "2026-11-26T08:00:00Z", date.UTC().Format(time.RFC3339))
}
