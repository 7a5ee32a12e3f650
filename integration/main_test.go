package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(processEnv); config != "" {
		if err := runProcess(config); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if !isBuilt() && !*engineTests { // those need no daemon but the engine
		fmt.Println("the daemons of the end-to-end tests are not built: run make test")
		os.Exit(1)
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-interrupted
		fmt.Println("ending what was started:", sig)
		testbed.Abort()
		removeImages()
		os.Exit(1)
	}()
	code := m.Run()
	removeImages()
	os.Exit(code)
}

// isBuilt reports if both daemons are there. In a new clone they are not, and every
// test would say so.
func isBuilt() bool {
	for _, flavor := range testbed.Flavors {
		for _, name := range []string{"buildkitd", "buildctl"} {
			if _, err := testbed.Binary(flavor, name); err != nil {
				return false
			}
		}
	}
	return true
}

// TestNotBuilt has no daemons: one line says what to do about it.
func TestNotBuilt(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "GRAPHLOAD_BIN="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.Equal(t, "the daemons of the end-to-end tests are not built: run make test\n", string(out))
	var exitErr *exec.ExitError
	require.ErrorAs(t, err, &exitErr)
	require.Equal(t, 1, exitErr.ExitCode())
}
