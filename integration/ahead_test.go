package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/identity"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

var aheadRounds = flag.Int("rounds", 1, "rounds of TestAheadTimes, of which it takes the medians; the bars hold with three or more, on an idle machine")

// aheadEnv makes a daemon evaluate ahead.
var aheadEnv = []string{"BUILDKIT_GRAPHLOAD=ahead"}

func newAheadDaemon(t *testing.T, opt testbed.DaemonOptions) *testbed.Daemon {
	t.Helper()
	opt.Flavor = testbed.Graphload
	opt.Env = append(opt.Env, aheadEnv...)
	d := newDaemon(t, opt)
	require.Contains(t, d.LogTail(-1), "chained results are evaluated ahead of their client")
	return d
}

// bakeGraph is a bake file whose targets are chained. Each target does work that needs
// its secret and not the results of the others. Then it copies the results of the targets
// that it is chained on.
type bakeGraph struct {
	name    string
	targets [][]int // for each target, the earlier targets that it is chained on
	mounts  string  // of the step that works, besides the secret
	work    string  // a command, sleep 1 by default
}

var (
	chainOfFive  = bakeGraph{name: "chain of five", targets: [][]int{nil, {0}, {1}, {2}, {3}}}
	diamondOfSix = bakeGraph{name: "diamond of six", targets: [][]int{nil, {0}, {0}, {0}, {0}, {1, 2, 3, 4}}}
	unlinked     = bakeGraph{name: "four without links", targets: [][]int{nil, nil, nil, nil}}
	single       = bakeGraph{name: "single build", targets: [][]int{nil}}
)

// write writes the graph with new secrets, so that every step is new. It returns the path
// of the file.
func (g bakeGraph) write(t *testing.T, dir string) string {
	t.Helper()
	work := g.work
	if work == "" {
		work = "sleep 1"
	}
	var sb strings.Builder
	var all []string
	for i, deps := range g.targets {
		all = append(all, fmt.Sprintf("%q", fmt.Sprintf("t%d", i)))
		secret := identity.NewID()
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("secret%d", i)), []byte(secret), 0o600))
		var contexts, copies []string
		for _, dep := range deps {
			contexts = append(contexts, fmt.Sprintf("t%d = \"target:t%d\"", dep, dep))
			copies = append(copies, fmt.Sprintf("    COPY --from=t%d /own* /\n", dep))
		}
		fmt.Fprintf(&sb, `target "t%[1]d" {
  contexts = { %[2]s }
  secret   = ["id=token,src=secret%[1]d"]
  output   = ["type=local,dest=out/t%[1]d"]

  dockerfile-inline = <<EOT
    FROM scratch AS root
    COPY rootfs /
    FROM root AS work
    RUN --mount=type=secret,id=token %[6]s test "$(cat /run/secrets/token)" = %[3]s && %[4]s && echo %[3]s > /own%[1]d
    FROM scratch
    COPY --from=work /own%[1]d /
%[5]s  EOT
}

`, i, strings.Join(contexts, ", "), secret, work, strings.Join(copies, ""), g.mounts)
	}
	fmt.Fprintf(&sb, "group \"default\" {\n  targets = [%s]\n}\n", strings.Join(all, ", "))
	path := filepath.Join(dir, "docker-bake.hcl")
	require.NoError(t, os.WriteFile(path, []byte(sb.String()), 0o600))
	return path
}

// requireOutput checks that each target has its own results and those of the targets
// below it.
func (g bakeGraph) requireOutput(t *testing.T, dir string) {
	t.Helper()
	made := make([]map[int]bool, len(g.targets))
	for i, deps := range g.targets {
		made[i] = map[int]bool{i: true}
		for _, dep := range deps {
			for k := range made[dep] {
				made[i][k] = true
			}
		}
		for k := range g.targets {
			dt, err := os.ReadFile(filepath.Join(dir, "out", fmt.Sprintf("t%d", i), fmt.Sprintf("own%d", k)))
			if !made[i][k] {
				require.ErrorIs(t, err, os.ErrNotExist)
				continue
			}
			require.NoError(t, err)
			secret, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("secret%d", k)))
			require.NoError(t, err)
			require.Equal(t, string(secret), strings.TrimSpace(string(dt)))
		}
	}
}

// bake bakes the graph and returns the time it took.
func (g bakeGraph) bake(t *testing.T, b *testbed.Builder, args ...string) time.Duration {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	file := g.write(t, dir)
	start := time.Now()
	log, err := b.BakeLog(t.Context(), file, nil, args...)
	took := time.Since(start)
	require.NoError(t, err, log)
	g.requireOutput(t, dir)
	return took
}

// TestAheadTimes compares the time of unmodified buildx v0.38.2, which evaluates
// linked targets one after another, on upstream's daemon and with evaluation ahead.
func TestAheadTimes(t *testing.T) {
	requireTestbed(t)
	up := newBuilderOf(t, "v0.38.2", newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Upstream}))
	ahead := newBuilderOf(t, "v0.38.2", newAheadDaemon(t, testbed.DaemonOptions{}))
	for _, tc := range []struct {
		graph bakeGraph
		most  float64
	}{{chainOfFive, 0.35}, {diamondOfSix, 0.55}, {unlinked, 1.1}, {single, 1.1}} {
		t.Run(tc.graph.name, func(t *testing.T) {
			tc.graph.bake(t, up) // sends the files
			tc.graph.bake(t, ahead)
			var upTimes, aheadTimes []time.Duration
			for range *aheadRounds {
				upTimes = append(upTimes, tc.graph.bake(t, up))
				aheadTimes = append(aheadTimes, tc.graph.bake(t, ahead))
			}
			u, a := medianOf(upTimes), medianOf(aheadTimes)
			t.Logf("%s: upstream %.2fs, ahead %.2fs, %.2f", tc.graph.name, u.Seconds(), a.Seconds(), a.Seconds()/u.Seconds())
			if *aheadRounds >= 3 {
				require.LessOrEqual(t, a.Seconds()/u.Seconds(), tc.most)
			} else if tc.most < 1 {
				require.Less(t, a, u)
			}
		})
	}
}

// evaluatedAhead returns how many results the daemon has evaluated ahead.
func evaluatedAhead(d *testbed.Daemon) int {
	return strings.Count(d.LogTail(-1), "evaluating ahead of the client")
}

// TestAheadSwitch starts the daemon with valid and invalid values of the switch.
func TestAheadSwitch(t *testing.T) {
	requireTestbed(t)
	for value, log := range map[string]string{
		"":      "lazy solves are loaded into the build graph, BUILDKIT_GRAPHLOAD=0",
		"1":     "lazy solves are loaded into the build graph, BUILDKIT_GRAPHLOAD=0",
		"0":     "lazy solves are not loaded into the build graph",
		"ahead": "chained results are evaluated ahead of their client",
	} {
		d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"BUILDKIT_GRAPHLOAD=" + value}})
		require.Contains(t, d.LogTail(-1), log, value)
	}
	bin, err := testbed.Binary(testbed.Graphload, "buildkitd")
	require.NoError(t, err)
	for _, value := range []string{"true", "2", "Ahead"} {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin, "--root", dir, "--addr", "unix://"+filepath.Join(dir, "sock"), "--otel-socket-path", filepath.Join(dir, "otel"), "--containerd-worker=false", "--oci-worker-net=host")
		cmd.Env = append(os.Environ(), "BUILDKIT_GRAPHLOAD="+value)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 1, exit.ExitCode(), string(out))
		require.Contains(t, string(out), fmt.Sprintf("buildkitd: invalid value %q of BUILDKIT_GRAPHLOAD: must be 0 (off), 1 (on, the default) or ahead", value))
	}
}

// TestAheadBake runs the scenarios of the compatibility table with evaluation ahead.
func TestAheadBake(t *testing.T) {
	d := newAheadDaemon(t, testbed.DaemonOptions{})
	for version, scenarios := range map[string][]testbed.Scenario{"v0.38.2": testbed.Scenarios, "v0.35.0": testbed.DemoScenarios, "v0.29.1": testbed.DemoScenarios} {
		b := newBuilderOf(t, version, d)
		for _, scenario := range scenarios {
			t.Run(version+"/"+scenario.Name, func(t *testing.T) {
				bakeTwice(t, scenario, b)
			})
		}
	}
	require.NotZero(t, evaluatedAhead(d))
}

// TestAheadGraphs bakes more graphs with buildx v0.38.2. Each target gets its secret, and
// all targets but the first are evaluated ahead, once.
func TestAheadGraphs(t *testing.T) {
	chain := func(n int) (targets [][]int) {
		for i := range n {
			targets = append(targets, []int{i - 1})
		}
		targets[0] = nil
		return targets
	}
	for _, tc := range []struct {
		graph bakeGraph
		args  []string
		ahead int
	}{
		{graph: bakeGraph{name: "chain of ten", targets: chain(10), work: "true"}, ahead: 9},
		{graph: bakeGraph{name: "diamonds", targets: [][]int{nil, {0}, {0}, {1, 2}, {3}, {3}, {4, 5}}, work: "true"}, ahead: 6},
		{graph: bakeGraph{name: "two bases", targets: [][]int{nil, nil, {0, 1}, {2}}, work: "true"}, ahead: 2},
		{graph: bakeGraph{name: "without cache", targets: chain(4), work: "true"}, args: []string{"--no-cache"}, ahead: 3},
		{graph: bakeGraph{
			name: "locked cache mount", targets: chain(5),
			// fails if the step sees another secret
			mounts: "--mount=type=cache,id=locked,target=/cache,sharing=locked", work: "mkdir /cache/in && sleep 0.2 && rm -r /cache/in",
		}, ahead: 4},
		{graph: bakeGraph{name: "platforms", targets: chain(3), work: "true"}, args: []string{"--set", "*.platform=linux/amd64,linux/arm64"}, ahead: 4},
		{graph: bakeGraph{name: "no links", targets: [][]int{nil, nil, nil}, work: "true"}},
		{graph: bakeGraph{name: "cache mount without cache", targets: chain(2), mounts: "--mount=type=cache,id=emptied,target=/cache", work: "true"}, args: []string{"--no-cache"}},
	} {
		t.Run(tc.graph.name, func(t *testing.T) {
			d := newAheadDaemon(t, testbed.DaemonOptions{})
			dir := t.TempDir()
			require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
			file := tc.graph.write(t, dir)
			log, err := newBuilderOf(t, "v0.38.2", d).BakeLog(t.Context(), file, nil, tc.args...)
			require.NoError(t, err, log)
			if len(tc.args) < 2 { // outputs of several platforms are in folders
				tc.graph.requireOutput(t, dir)
			}
			require.Equal(t, tc.ahead, evaluatedAhead(d))
			for i := range tc.graph.targets {
				secret, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("secret%d", i)))
				require.NoError(t, err)
				require.Equal(t, max(1, len(tc.args)), strings.Count(d.LogTail(-1), fmt.Sprintf("= %s && %s && echo %s > /own%d]\" span", secret, strings.ReplaceAll(tc.graph.work, `"`, `\"`), secret, i)), "target %d runs once", i)
			}
		})
	}
}

// TestAheadCall makes calls that return a description of targets, not their results.
func TestAheadCall(t *testing.T) {
	d := newAheadDaemon(t, testbed.DaemonOptions{})
	b := newBuilderOf(t, "v0.38.2", d)
	for _, args := range [][]string{{"--call", "outline"}, {"--call", "targets"}, {"--call", "check"}, {"--print"}} {
		dir := t.TempDir()
		require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
		_, err := b.BakeLog(t.Context(), chainOfFive.write(t, dir), nil, args...)
		t.Logf("%v: %v", args, err)
	}
	require.Zero(t, evaluatedAhead(d))
	require.NotContains(t, d.LogTail(-1), "> creating", "a step has run")
}

// TestAheadResults bakes the same file on a daemon without evaluation ahead and on one
// with it, and compares digests, provenance and history.
func TestAheadResults(t *testing.T) {
	requireTestbed(t)
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	g := bakeGraph{targets: [][]int{nil, {0}, {0}, {1, 2}}, work: "true"}
	file := g.write(t, dir)
	bake := func(d *testbed.Daemon) any {
		args := []string{"--metadata-file", "metadata.json", "--set", "*.args.SOURCE_DATE_EPOCH=0", "--set", "*.attest=type=provenance,mode=max"}
		for i := range g.targets {
			args = append(args, "--set", fmt.Sprintf("t%d.output=type=oci,rewrite-timestamp=true,dest=t%d.tar", i, i))
		}
		log, err := newBuilderOf(t, "v0.38.2", d).BakeLog(t.Context(), file, []string{"BUILDX_METADATA_PROVENANCE=max"}, args...)
		require.NoError(t, err, log)
		dt, err := os.ReadFile(filepath.Join(dir, "metadata.json"))
		require.NoError(t, err)
		var metadata map[string]map[string]any
		require.NoError(t, json.Unmarshal(dt, &metadata))
		c := newClient(t, d)
		for i := range g.targets {
			target := metadata[fmt.Sprintf("t%d", i)]
			require.Contains(t, target, "buildx.build.provenance")
			ref, _ := target["buildx.build.ref"].(string)
			record := historyRecord(t, c, ref[strings.LastIndexByte(ref, '/')+1:])
			target["history"] = []int32{record.NumCompletedSteps, record.NumTotalSteps, record.NumWarnings}
			// compare the image without the provenance, which has the time of the run
			archive, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("t%d.tar", i)))
			require.NoError(t, err)
			target["image"] = imageLayers(t, archive)
			target["attestations"] = findProvenance(t, archive)
			delete(target, "buildx.build.ref")
			delete(target, "containerimage.digest")
			delete(target, "containerimage.descriptor")
			delete(target, "image.name")
			metadata[fmt.Sprintf("t%d", i)] = target
		}
		dt, err = json.MarshalIndent(withoutRun(anyMap(metadata)), "", " ")
		require.NoError(t, err)
		return sharedSession.ReplaceAllString(string(dt), "$1")
	}
	want := bake(newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))
	got := bake(newAheadDaemon(t, testbed.DaemonOptions{}))
	require.Equal(t, want, got)
}

// sharedSession matches the session that targets with the same context share. It is new
// in each run.
var sharedSession = regexp.MustCompile(`(local-sessionid:context[\\": ]+)\w+`)

func anyMap[V any](m map[string]V) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// imageLayers returns the digests of the layers and configurations in an OCI archive.
func imageLayers(t *testing.T, archive []byte) (digests []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(digests)
			require.NotEmpty(t, digests)
			return digests
		}
		require.NoError(t, err)
		dt, err := io.ReadAll(tr)
		require.NoError(t, err)
		var manifest struct {
			Config struct{ MediaType, Digest string }
			Layers []struct{ MediaType, Digest string }
		}
		if json.Unmarshal(dt, &manifest) != nil || manifest.Config.Digest == "" || len(manifest.Layers) == 0 || strings.Contains(manifest.Layers[0].MediaType, "in-toto") {
			continue
		}
		digests = append(digests, manifest.Config.Digest)
		for _, l := range manifest.Layers {
			digests = append(digests, l.Digest)
		}
	}
}
