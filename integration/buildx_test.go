package integration

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/stretchr/testify/require"
)

// orderedBuildx is the release of buildx that the patch is for. Unpatched, it orders
// linked targets.
const orderedBuildx = "v0.38.2"

// linkedTargets is a bake file of base and default, which is linked to base. Both do
// work; the work of default is in a stage that does not need base. They see each other
// in the folder /seen. The folder and the steps are new for each RUN. With --no-cache,
// each build would empty the folder when it is evaluated.
const linkedTargets = `
variable "RUN" {}
variable "BASE" {}
variable "OWN" {}
variable "LAST" { default = "true" }

target "default" {
  contexts = { base = "target:base" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch AS own
    COPY rootfs /
    RUN --mount=type=cache,id=seen-${RUN},target=/seen ${OWN}
    FROM base
    COPY --from=own /bin/busybox /own
    RUN ${LAST}
  EOT
}

target "base" {
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    RUN --mount=type=cache,id=seen-${RUN},target=/seen ${BASE}
  EOT
}
`

// bakeLinked bakes linkedTargets with the given commands, and returns the progress.
func bakeLinked(t *testing.T, b *testbed.Builder, commands map[string]string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	file := filepath.Join(dir, "docker-bake.hcl")
	require.NoError(t, os.WriteFile(file, []byte(linkedTargets), 0o600))
	env := []string{"RUN=" + rand.Text()}
	for name, command := range commands {
		env = append(env, name+"="+command)
	}
	return b.BakeLog(t.Context(), file, env, args...)
}

// TestLinkedTargets checks in which order targets are evaluated.
func TestLinkedTargets(t *testing.T) {
	requireTestbed(t)
	// base's step ends after default's step has run
	beside := map[string]string{
		"BASE": "i=0; while [ ! -e /seen/own ]; do [ $i = 600 ] && exit 1; i=$((i+1)); sleep 0.1; done",
		"OWN":  "echo > /seen/own",
	}
	// default's step needs what base's step does at its end
	inOrder := map[string]string{
		"BASE": "sleep 3 && echo > /seen/base",
		"OWN":  "[ -e /seen/base ]",
	}
	for _, tc := range []struct {
		name   string
		flavor testbed.Flavor
		env    []string
		buildx string
		pass   map[string]string
		fail   map[string]string
	}{
		{name: "loading daemon", flavor: testbed.Graphload, buildx: testbed.PatchedBuildx, pass: beside, fail: inOrder},
		{name: "upstream's daemon", flavor: testbed.Upstream, buildx: testbed.PatchedBuildx, pass: inOrder},
		{name: "switched off", flavor: testbed.Graphload, env: []string{"BUILDKIT_GRAPHLOAD=0"}, buildx: testbed.PatchedBuildx, pass: inOrder},
		{name: "unmodified buildx", flavor: testbed.Graphload, buildx: orderedBuildx, pass: inOrder},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBuilderOf(t, tc.buildx, newDaemon(t, testbed.DaemonOptions{Flavor: tc.flavor, Env: tc.env}))
			_, err := bakeLinked(t, b, tc.pass)
			require.NoError(t, err)
			if tc.fail != nil {
				_, err := bakeLinked(t, b, tc.fail)
				require.ErrorContains(t, err, "target default: failed to solve")
			}
		})
	}
}

// TestLinkedTargetsFail compares what buildx reports of failing targets with what the
// unmodified buildx reports on upstream's daemon.
func TestLinkedTargetsFail(t *testing.T) {
	requireTestbed(t)
	builders := []*testbed.Builder{
		newBuilderOf(t, orderedBuildx, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Upstream})),
		newBuilderOf(t, testbed.PatchedBuildx, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})),
	}
	results := regexp.MustCompile(`(base|default): (succeeded|failed|aborted|not started)|ERROR: target \S+ failed to solve: .*`)
	for name, commands := range map[string]map[string]string{
		"base":        {"BASE": "sleep 2 && false", "OWN": "true"},
		"own on base": {"BASE": "true", "OWN": "true", "LAST": "false"},
		"both":        {"BASE": "sleep 2 && false", "OWN": "false"},
		"none":        {"BASE": "true", "OWN": "true"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, jobs := range []string{"fail-fast", "defer-error", "defer-output"} {
				var reports [][]string
				for _, b := range builders {
					log, err := bakeLinked(t, b, commands, "--jobs", jobs)
					require.Equal(t, name != "none", err != nil, "%v", err)
					if err != nil {
						log = err.Error()
					}
					found := results.FindAllString(log, -1)
					slices.Sort(found)
					reports = append(reports, slices.Compact(found))
				}
				require.Equal(t, reports[0], reports[1], jobs)
				if name != "none" {
					require.NotEmpty(t, reports[0], jobs)
				}
				t.Logf("%s: %q", jobs, reports[0])
			}
		})
	}
}
