package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// ordinaryBuild is what clients and other users can see of a build.
type ordinaryBuild struct {
	Vertices   []string // sorted names, with logs and whether they were cached
	Again      []string // the same for a second build
	Sequence   []string // names of dependent steps, by the time of their end
	Err        string
	Image      string   // digest without attestations
	Provenance []string // by platform, without times and names that differ between runs
	Steps      []int32  // completed, cached and all, in the history
}

const ordinaryRootfs = "FROM scratch AS rootfs\nCOPY rootfs /\n"

// ordinaryBuilds chain nothing.
var ordinaryBuilds = []struct {
	name, dockerfile string
	attrs            map[string]string
	sequence         bool
}{
	{name: "single stage", dockerfile: ordinaryRootfs + "RUN echo one > /one\nRUN echo two\nRUN echo three >&2\n", sequence: true},
	{name: "failure", dockerfile: ordinaryRootfs + "RUN echo one\nRUN echo two; exit 3\nRUN echo three\n", sequence: true},
	{name: "stages", dockerfile: ordinaryRootfs + "FROM rootfs AS a\nRUN echo a > /a\nFROM rootfs AS b\nRUN echo b > /b\nFROM a\nCOPY --from=b /b /b\nRUN cat /a /b > /c\n"},
	{name: "platforms", dockerfile: ordinaryRootfs + "ARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n", attrs: map[string]string{"platform": "linux/amd64,linux/arm64"}},
}

// TestQuietBuilds has builds that chain nothing, which look the same as on
// upstream's daemon.
func TestQuietBuilds(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	for _, tc := range ordinaryBuilds {
		t.Run(tc.name, func(t *testing.T) {
			requireQuiet(t, serveDaemon, tc.dockerfile, tc.attrs, tc.sequence)
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
		requireQuiet(t, serveDaemon, "# syntax="+image+"\n"+ordinaryRootfs+"ARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n", map[string]string{"platform": "linux/amd64,linux/arm64"}, false)
	})
}

// requireQuiet builds a Dockerfile on both daemons and compares all that can be
// seen of it.
func requireQuiet(t *testing.T, serve serveFunc, dockerfile string, attrs map[string]string, sequence bool) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(filepath.Join(dir, "rootfs")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	results := map[testbed.Flavor]ordinaryBuild{}
	for _, flavor := range testbed.Flavors {
		result := buildOrdinary(t, serve(t, flavor).client(t), dir, attrs)
		if !sequence {
			result.Sequence = nil
		}
		results[flavor] = result
	}
	if up := results[testbed.Upstream]; up.Err == "" {
		require.NotEmpty(t, up.Image)
		require.NotEmpty(t, up.Provenance)
		require.NotEqual(t, up.Vertices, up.Again, "the second build uses the cache of the first")
	} else {
		require.Contains(t, up.Err, "exit code: 3")
		require.Contains(t, up.Vertices, "[3/4] RUN echo two; exit 3: failed: two\n")
	}
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
		done := make(chan struct{})
		var names, sequence []string
		go func() {
			defer close(done)
			names, sequence = vertices(status)
		}()
		resp, err := c.Solve(t.Context(), nil, opt, status)
		<-done
		if err != nil {
			out.Vertices, out.Sequence, out.Err = names, sequence, err.Error()
			return out
		}
		if !provenance {
			out.Again, out.Image = names, resp.ExporterResponse["containerimage.digest"]
			continue
		}
		out.Vertices, out.Sequence = names, sequence
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

// vertices returns the sorted names of the vertices that have run, with their outcome and
// output. It also returns the steps of a stage in the order of their ends.
func vertices(status <-chan *client.SolveStatus) (names, sequence []string) {
	seen, logs := map[digest.Digest]string{}, map[digest.Digest]string{}
	for st := range status {
		for _, l := range st.Logs {
			logs[l.Vertex] += string(l.Data)
		}
		for _, v := range st.Vertexes {
			if _, ok := seen[v.Digest]; ok || v.Completed == nil {
				continue
			}
			// a vertex that platforms share has the name of the first platform
			name := strings.ReplaceAll(v.Name, "[linux/arm64 ", "[linux/amd64 ")
			if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") {
				sequence = append(sequence, name)
			}
			if v.Cached {
				name += ": cached"
			}
			if v.Error != "" {
				name += ": failed"
			}
			seen[v.Digest] = name
		}
	}
	for dgst, name := range seen {
		if strings.HasPrefix(name, "[") && logs[dgst] != "" {
			name += ": " + logs[dgst]
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, sequence
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

// findProvenance returns the provenance in an OCI archive, without what differs between
// runs.
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
				// digests of content that contains the time of the run
				"digestMapping", "layers",
				// a step that platforms share has the name of the first platform
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

// TestQuietProvenance uses a child whose base comes from a git repository and is solved
// lazily or evaluated at once. The child's provenance names the source of base, with its
// digest if base was evaluated, as on upstream's daemon.
func TestQuietProvenance(t *testing.T) {
	t.Parallel()
	requireTestbed(t)
	git, err := testbed.StartGitServer(t.Context(), map[string]string{"Dockerfile": "FROM scratch\nCOPY file /\n", "file": "content"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Close()) })
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY --from=base /file /copy\n"), 0o600))
	seen := map[bool]map[testbed.Flavor][]string{false: {}, true: {}}
	for _, flavor := range testbed.Flavors {
		c := newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: flavor}))
		for evaluate := range seen {
			var archive buffer
			child := peer{name: "child", locals: map[string]string{"context": dir, "dockerfile": dir}}
			opt, err := child.options()
			require.NoError(t, err)
			opt.FrontendAttrs = map[string]string{"attest:provenance": "mode=max"}
			opt.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Output: func(map[string]string) (io.WriteCloser, error) { return &archive, nil }}}
			require.NoError(t, peer{name: "base"}.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
				res, err := b.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: map[string]string{"context": git.URL + "#main"}, Evaluate: evaluate})
				if err != nil {
					return err
				}
				ref, err := res.SingleRef()
				if err != nil {
					return err
				}
				st, err := ref.ToState()
				if err != nil {
					return err
				}
				def, err := st.Marshal(ctx)
				if err != nil {
					return err
				}
				_, err = c.Build(ctx, opt, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
					return gc.Solve(ctx, gateway.SolveRequest{
						Frontend:       "dockerfile.v0",
						FrontendInputs: map[string]*pb.Definition{"base": def.ToPB()},
						FrontendOpt:    map[string]string{"context:base": "input:base", "attest:provenance": "mode=max"},
					})
				}, nil)
				return err
			}))
			seen[evaluate][flavor] = findProvenance(t, archive.Bytes())
		}
	}
	for evaluate, by := range seen {
		require.NotEmpty(t, by[testbed.Upstream])
		require.Equal(t, by[testbed.Upstream], by[testbed.Graphload], "evaluated: %t", evaluate)
	}
	require.NotEqual(t, seen[true][testbed.Upstream], seen[false][testbed.Upstream], "the digest is known after the evaluation")
}
