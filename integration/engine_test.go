package integration

import (
	"debug/elf"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/graphload/graphload/internal/compat"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var engineTests = flag.Bool("engine", false, "run the tests of the Docker engine that graphload engine has built")

// engineBuildx are the versions of buildx that bake on engines. v0.29.1 evaluates chained
// targets at once, v0.35.0 in parallel, and v0.38.2 in order.
var engineBuildx = []string{"v0.29.1", "v0.35.0", "v0.38.2"}

// requireEngine skips the test unless graphload engine --test runs it, which builds the
// engine.
func requireEngine(t *testing.T) {
	t.Helper()
	requireTestbed(t)
	if !*engineTests {
		t.Skip("needs the Docker engine: run graphload engine --test")
	}
}

// newEngine starts an engine for the test.
func newEngine(t *testing.T, opt testbed.EngineOptions) *testbed.Engine {
	t.Helper()
	requireEngine(t)
	e, err := testbed.StartEngine(t.Context(), opt)
	require.NoError(t, err)
	t.Cleanup(func() {
		if dir := os.Getenv(testbed.LogsEnv); dir != "" {
			assert.NoError(t, e.SaveLog(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+"-"+string(e.Flavor)+".log")))
		}
		if t.Failed() {
			t.Logf("end of the log of the %s engine:\n%s", e.Flavor, e.LogTail(60))
		}
		require.NoError(t, e.Close())
	})
	return e
}

// newEngineBuilder returns a buildx on the docker driver for the test.
func newEngineBuilder(t *testing.T, e *testbed.Engine, version string) *testbed.Builder {
	t.Helper()
	b, err := e.NewBuilder(t.Context(), version)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// TestEngine checks that the binaries are static, and what docker version and
// docker buildx ls show.
func TestEngine(t *testing.T) {
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			e := newEngine(t, testbed.EngineOptions{Flavor: flavor})
			for _, name := range []string{"dockerd", "docker-proxy"} {
				path, err := testbed.Binary(flavor, name)
				require.NoError(t, err)
				f, err := elf.Open(path)
				require.NoError(t, err)
				libs, err := f.ImportedLibraries()
				require.NoError(t, err)
				require.Empty(t, libs, name)
				require.NoError(t, f.Close())
			}

			dt, err := e.Get(t.Context(), "/version")
			require.NoError(t, err)
			var version struct{ Version, GitCommit, BuildTime string }
			require.NoError(t, json.Unmarshal(dt, &version))
			out, err := newEngineBuilder(t, e, "v0.38.2").Output(t.Context(), t.TempDir(), nil, "ls")
			require.NoError(t, err)
			t.Logf("%+v\n%s", version, out)
			if flavor == testbed.Graphload {
				require.Regexp(t, `^\d+\.\d+\.\d+(-\w+\.\d+)?\+graphload$`, version.Version)
				require.Regexp(t, `default\s.*running\s+v\d+\.\d+\.\d+\+graphload\s`, out)
				require.Contains(t, e.LogTail(-1), "lazy solves are loaded into the build graph")
			} else {
				require.Regexp(t, `^\d+\.\d+\.\d+(-\w+\.\d+)?$`, version.Version)
				require.Regexp(t, `default\s.*running\s+v\d+\.\d+\.\d+\s`, out)
				require.NotContains(t, e.LogTail(-1), "lazy solves")
			}
			require.NotContains(t, version.BuildTime, "library-import")
			require.NotContains(t, version.GitCommit, "library-import")
		})
	}
}

// TestEngineScenarios bakes the scenarios on the docker driver, on upstream's engine and on
// this one by turns. Upstream's must fail where an old buildx relies on the daemon:
// otherwise the scenarios show nothing.
func TestEngineScenarios(t *testing.T) {
	runEngineScenarios(t, testbed.EngineOptions{}, testbed.DemoScenarios, "secret")
}

// TestEngineGraphDriver is TestEngineScenarios with images in a graph driver, which has
// those of one platform only. Upstream's engine passes the chain most of the time.
func TestEngineGraphDriver(t *testing.T) {
	scenarios, err := testbed.FindScenarios([]string{"chain"})
	require.NoError(t, err)
	runEngineScenarios(t, testbed.EngineOptions{GraphDriver: true}, scenarios, "")
}

// TestEngineDocker is TestEngineScenarios for builds with the docker command, and buildx
// and compose as its plugins.
func TestEngineDocker(t *testing.T) {
	runEngineScenarios(t, testbed.EngineOptions{}, testbed.EngineScenarios, "docker-compose")
}

// runEngineScenarios bakes the scenarios. With the oldest buildx, upstream's engine must fail
// in the one that is named.
func runEngineScenarios(t *testing.T, opt testbed.EngineOptions, scenarios []testbed.Scenario, fails string) {
	t.Helper()
	engines := map[testbed.Flavor]*testbed.Engine{}
	for _, flavor := range testbed.Flavors {
		opt.Flavor = flavor
		engines[flavor] = newEngine(t, opt)
	}
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tBUILDX\tUPSTREAM\tGRAPHLOAD")
	for _, scenario := range scenarios {
		for _, version := range engineBuildx {
			t.Run(scenario.Name+"/"+version, func(t *testing.T) {
				passes := bakeByTurns(t, engines, scenario, version, *containerRuns)
				fmt.Fprintf(tw, "%s\t%s\t%d/%d\t%d/%d\n", scenario.Name, version, passes[testbed.Upstream], *containerRuns, passes[testbed.Graphload], *containerRuns)
				t.Logf(compat.PassesFormat, about(scenario, opt), version, passes[testbed.Upstream], passes[testbed.Graphload])
				require.Equal(t, *containerRuns, passes[testbed.Graphload])
				if scenario.Name == fails && version == engineBuildx[0] {
					require.Less(t, passes[testbed.Upstream], *containerRuns, "upstream's engine has the defect")
				}
			})
		}
	}
	require.NoError(t, tw.Flush())
	t.Logf("passes:\n%s", table.String())
}

// about is what the table says of a scenario.
func about(s testbed.Scenario, opt testbed.EngineOptions) string {
	if opt.GraphDriver {
		return s.About + ", images in a graph driver"
	}
	return s.About
}

// bakeByTurns returns how many of the runs passed on each engine.
func bakeByTurns(t *testing.T, engines map[testbed.Flavor]*testbed.Engine, scenario testbed.Scenario, version string, runs int) map[testbed.Flavor]int {
	t.Helper()
	p, err := testbed.NewProject(t.Context(), scenario)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	builders := map[testbed.Flavor]*testbed.Builder{}
	for flavor, e := range engines {
		builders[flavor] = newEngineBuilder(t, e, version)
	}
	passes := map[testbed.Flavor]int{}
	for range runs {
		for flavor, b := range builders {
			if err := p.Run(t.Context(), b); err != nil {
				if flavor == testbed.Graphload || !isLoss(err) {
					t.Errorf("%s: %v", flavor, err)
				}
				continue
			}
			passes[flavor]++
		}
	}
	return passes
}

// isLoss reports if a bake failed because a step did not get what its target offers.
// Other failures, such as that of an engine that runs no step, prove nothing.
func isLoss(err error) bool {
	for _, text := range []string{"secret token: not found", "secret source: not found", "secret console: not found", `[ -n "$SOURCE" ]`, `[ -n "$CONSOLE" ]`, "[ \"$(cat /agent)\" = forwarded ]"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// TestEngineSwitch switches the change off in the environment of dockerd.
func TestEngineSwitch(t *testing.T) {
	e := newEngine(t, testbed.EngineOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=0"}})
	require.Contains(t, e.LogTail(-1), "lazy solves are not loaded into the build graph: BUILDKIT_GRAPHLOAD=0")
	_, err := testbed.StartEngine(t.Context(), testbed.EngineOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=maybe"}})
	require.ErrorContains(t, err, "BUILDKIT_GRAPHLOAD", "an engine with another value does not start")
	scenarios, err := testbed.FindScenarios([]string{"secret"})
	require.NoError(t, err)
	p, err := testbed.NewProject(t.Context(), scenarios[0])
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	b := newEngineBuilder(t, e, engineBuildx[0])
	failed := 0
	for range 3 {
		if err := p.Run(t.Context(), b); err != nil {
			require.True(t, isLoss(err), "%v", err)
			failed++
		}
	}
	require.NotZero(t, failed, "the engine behaves as upstream's")
}

// TestEngineUpgrade replaces the engine and keeps its data: upstream's engine by this one,
// and back. The cache and the images are kept.
func TestEngineUpgrade(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY rootfs /\nRUN echo made by a step > /made\n"), 0o600))
	for i, flavor := range []testbed.Flavor{testbed.Upstream, testbed.Graphload, testbed.Upstream} {
		ok := t.Run(fmt.Sprintf("%d %s", i+1, flavor), func(t *testing.T) {
			e := newEngine(t, testbed.EngineOptions{Flavor: flavor, Root: root})
			dt, err := e.Get(t.Context(), "/images/json")
			require.NoError(t, err)
			require.Equal(t, i, strings.Count(string(dt), `"Id"`), "%s", dt)
			log, err := newEngineBuilder(t, e, "v0.38.2").Output(t.Context(), dir, nil, "build", "--progress", "plain", "--provenance=false",
				"--label", fmt.Sprintf("build=%d", i), "--tag", fmt.Sprintf("upgrade:%d", i), ".")
			require.NoError(t, err)
			if i > 0 {
				require.Regexp(t, `(?m)RUN echo made by a step.*\n#\d+ CACHED$`, log)
			}
		})
		if !ok {
			break
		}
	}
}
