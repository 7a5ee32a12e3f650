package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/graphload/graphload/integration/testbed"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// ordinaryBuild is what a client and others get to see of a build.
type ordinaryBuild struct {
	Vertices   []string // names, sorted
	Image      string   // digest without attestations
	Provenance []string // by platform, without times and names of the run
	Steps      []int32  // completed, cached and all, in the history
}

// TestQuietBuilds has builds that chain nothing, which look the same as on
// upstream's daemon.
func TestQuietBuilds(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	const rootfs = "FROM scratch AS rootfs\nCOPY rootfs /\n"
	for _, tc := range []struct {
		name, dockerfile string
		attrs            map[string]string
	}{
		{name: "single stage", dockerfile: rootfs + "RUN echo one > /one\nRUN echo two > /two\n"},
		{name: "stages", dockerfile: rootfs + "FROM rootfs AS a\nRUN echo a > /a\nFROM rootfs AS b\nRUN echo b > /b\nFROM a\nCOPY --from=b /b /b\nRUN cat /a /b > /c\n"},
		{name: "platforms", dockerfile: rootfs + "ARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n", attrs: map[string]string{"platform": "linux/amd64,linux/arm64"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			requireQuiet(t, tc.dockerfile, tc.attrs)
		})
	}
	t.Run("frontend in an image", func(t *testing.T) {
		if !*dockerTests {
			t.Skip("takes long: run make integration")
		}
		registry, err := testbed.StartRegistry(t.Context(), testbed.RegistryOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, registry.Close()) })
		image := registry.Host + "/dockerfile:latest"
		pushFrontend(t, image)
		requireQuiet(t, "# syntax="+image+"\n"+rootfs+"ARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n", map[string]string{"platform": "linux/amd64,linux/arm64"})
	})
}

// requireQuiet builds a Dockerfile on both daemons and compares all that can be
// seen of it.
func requireQuiet(t *testing.T, dockerfile string, attrs map[string]string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	results := map[testbed.Flavor]ordinaryBuild{}
	for _, flavor := range testbed.Flavors {
		d := newDaemon(t, testbed.DaemonOptions{Flavor: flavor})
		results[flavor] = buildOrdinary(t, newClient(t, d), dir, attrs)
	}
	require.NotEmpty(t, results[testbed.Upstream].Image)
	require.NotEmpty(t, results[testbed.Upstream].Provenance)
	require.Equal(t, results[testbed.Upstream], results[testbed.Graphload])
}

// pushFrontend pushes an image with the Dockerfile frontend.
func pushFrontend(t *testing.T, image string) {
	t.Helper()
	bin, err := testbed.DockerfileFrontend(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	dt, err := os.ReadFile(bin)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "frontend"), dt, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY frontend /frontend\nENTRYPOINT [\"/frontend\"]\n"), 0o600))
	b := newBuilder(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Upstream}))
	_, err = b.Output(t.Context(), dir, nil, "build", "--provenance", "false", "--output", "type=registry,name="+image, ".")
	require.NoError(t, err)
}

func buildOrdinary(t *testing.T, c *client.Client, dir string, attrs map[string]string) (out ordinaryBuild) {
	src, err := fsutil.NewFS(dir)
	require.NoError(t, err)
	for _, provenance := range []bool{true, false} {
		opt := client.SolveOpt{
			Ref:           identity.NewID(),
			Frontend:      "dockerfile.v0",
			FrontendAttrs: map[string]string{"build-arg:SOURCE_DATE_EPOCH": "0"},
			LocalMounts:   map[string]fsutil.FS{"context": src, "dockerfile": src},
		}
		for k, v := range attrs {
			opt.FrontendAttrs[k] = v
		}
		if provenance {
			opt.FrontendAttrs["attest:provenance"] = "mode=max"
		}
		var image buffer
		opt.Exports = []client.ExportEntry{{
			Type:   client.ExporterOCI,
			Attrs:  map[string]string{"rewrite-timestamp": "true"},
			Output: func(map[string]string) (io.WriteCloser, error) { return &image, nil },
		}}
		status := make(chan *client.SolveStatus)
		vertices := make(chan []string)
		go func() { vertices <- vertexNames(status) }()
		resp, err := c.Solve(t.Context(), nil, opt, status)
		names := <-vertices
		require.NoError(t, err)
		if !provenance {
			out.Image = resp.ExporterResponse["containerimage.digest"]
			continue
		}
		out.Vertices = names
		out.Provenance = findProvenance(t, image.Bytes())
		record := historyRecord(t, c, opt.Ref)
		out.Steps = []int32{record.NumCompletedSteps, record.NumCachedSteps, record.NumTotalSteps}
	}
	return out
}

type buffer struct {
	bytes.Buffer
}

func (b *buffer) Close() error {
	return nil
}

// vertexNames returns the sorted names of the vertices that have run.
func vertexNames(status <-chan *client.SolveStatus) []string {
	seen := map[digest.Digest]bool{}
	var names []string
	for st := range status {
		for _, v := range st.Vertexes {
			if v.Completed == nil || seen[v.Digest] {
				continue
			}
			seen[v.Digest] = true
			// what platforms share has the name of the one that came first
			names = append(names, strings.ReplaceAll(v.Name, "[linux/arm64 ", "[linux/amd64 "))
		}
	}
	slices.Sort(names)
	return names
}

func historyRecord(t *testing.T, c *client.Client, ref string) *controlapi.BuildHistoryRecord {
	stream, err := c.ControlClient().ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	require.NoError(t, err)
	for {
		ev, err := stream.Recv()
		require.NoError(t, err)
		if ev.Record != nil && ev.Record.Ref == ref {
			return ev.Record
		}
	}
}

// findProvenance returns the provenance in an OCI archive, without what tells
// one run from another.
func findProvenance(t *testing.T, archive []byte) (out []string) {
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		require.NoError(t, err)
		dt, err := io.ReadAll(tr)
		require.NoError(t, err)
		var statement map[string]any
		if json.Unmarshal(dt, &statement) != nil {
			continue
		}
		if typ, _ := statement["predicateType"].(string); !strings.Contains(typ, "provenance") {
			continue
		}
		dt, err = json.MarshalIndent(withoutRun(statement["predicate"]), "", "  ")
		require.NoError(t, err)
		out = append(out, string(dt))
	}
}

// withoutRun removes times, identifiers and measurements.
func withoutRun(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			switch k {
			case "startedOn", "finishedOn", "invocationId", "invocationID", "buildStartedOn", "buildFinishedOn", "buildInvocationID", "sysUsage", "resourceUsage",
				// of what has the time of the run in it
				"digestMapping", "layers",
				// what platforms share has the one that came first
				"platform":
				delete(v, k)
			default:
				v[k] = withoutRun(e)
			}
		}
	case []any:
		for i, e := range v {
			v[i] = withoutRun(e)
		}
	}
	return v
}
