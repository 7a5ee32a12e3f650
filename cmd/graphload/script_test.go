package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"graphload": main})
}

// TestScripts calls the command in folders that have only the seam list and the go.mod
// of this repository. PATH has git, but neither the go command nor apt-get, so a call
// that would start them before it fails does not pass.
func TestScripts(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	git, err := exec.LookPath("git")
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"go.mod", assemble.SeamList} {
				dt, err := os.ReadFile(filepath.Join(root, name))
				if err != nil {
					return errors.WithStack(err)
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), dt, 0o600); err != nil {
					return errors.WithStack(err)
				}
			}
			bin, _, _ := strings.Cut(env.Getenv("PATH"), string(os.PathListSeparator))
			tools := filepath.Join(env.WorkDir, ".tools")
			env.Setenv("PATH", bin+string(os.PathListSeparator)+tools)
			if err := os.Mkdir(tools, 0o700); err != nil {
				return errors.WithStack(err)
			}
			return errors.WithStack(os.Symlink(git, filepath.Join(tools, "git")))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"refused": refused},
	})
}

// refused is a command of the scripts. It requires that a call of graphload fails with
// code 1 and one line that matches the first argument, and writes nothing.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: refused pattern args...")
	}
	want, err := regexp.Compile("^graphload: " + args[0] + "\n$")
	ts.Check(err)
	before := filesBelow(ts)
	err = ts.Exec("graphload", args[1:]...)
	var exit interface{ ExitCode() int }
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		ts.Fatalf("it must end with code 1: %v", err)
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("nothing must be on the standard output: %s", out)
	}
	if out := ts.ReadFile("stderr"); !want.MatchString(out) {
		ts.Fatalf("%q does not match %q", out, want)
	}
	if after := filesBelow(ts); after != before {
		ts.Fatalf("files were written: before %s, after %s", before, after)
	}
}

func filesBelow(ts *testscript.TestScript) string {
	var names []string
	ts.Check(filepath.WalkDir(ts.Getenv("WORK"), func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	}))
	return strings.Join(names, " ")
}
