package llbsolver

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend"
	gw "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

// randomState is a graph of all kinds of ops.
func randomState(rnd *rand.Rand, depth int) llb.State {
	if depth == 0 {
		switch rnd.IntN(5) {
		case 0:
			return llb.Image(fmt.Sprintf("docker.io/library/img%d:latest", rnd.IntN(3)))
		case 1:
			return llb.Image("img") // the client normalizes it, or not
		case 2:
			return llb.Local("src", llb.IncludePatterns([]string{"*"}), llb.SharedKeyHint(fmt.Sprint(rnd.IntN(3))))
		case 3:
			return llb.Git("https://example.com/repo.git", "main", llb.KeepGitDir())
		}
		return llb.HTTP("https://example.com/file", llb.Filename("a"))
	}
	in := randomState(rnd, depth-1)
	switch rnd.IntN(6) {
	case 0:
		return in.File(llb.Mkdir("/dir", 0o755).Mkfile("/dir/a", 0o600, []byte(fmt.Sprint(rnd.IntN(5)))))
	case 1:
		return in.File(llb.Copy(randomState(rnd, depth-1), "/a", "/b", &llb.CopyInfo{CreateDestPath: true}))
	case 2:
		return llb.Merge([]llb.State{in, randomState(rnd, depth-1)})
	case 3:
		return llb.Diff(randomState(rnd, depth-1), in)
	case 4:
		return in.Run(llb.Shlex(fmt.Sprintf("step %d", rnd.IntN(5))), llb.AddEnv("A", "b"), llb.AddEnv("B", ""), llb.AddExtraHost("host", []byte{127, 0, 0, 1}),
			llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("c", llb.CacheMountLocked)), llb.AddMount("/src", randomState(rnd, depth-1), llb.Readonly),
			llb.AddSecret("/run/secrets/token"), llb.AddSSHSocket(llb.SSHOptional), llb.Network(llb.NetModeHost)).Root()
	}
	return in.Run(llb.Shlex("step"), llb.ReadonlyRootFS(), llb.Security(llb.SecurityModeInsecure)).GetMount("/none")
}

// loadedDigests loads a definition and returns the digests of its vertices.
func loadedDigests(t *testing.T, br *provenanceBridge, req *frontend.SolveRequest) ([]digest.Digest, error) {
	def, err := br.loadDefinition(t.Context(), req.Definition, req.CacheImports, req.SourcePolicies)
	if err != nil {
		return nil, err
	}
	seen := map[digest.Digest]bool{}
	var walk func(solver.Vertex)
	walk = func(v solver.Vertex) {
		if seen[v.Digest()] {
			return
		}
		seen[v.Digest()] = true
		for _, in := range v.Inputs() {
			walk(in.Vertex)
		}
	}
	walk(def.edge.Vertex)
	var out []digest.Digest
	for dgst := range seen {
		out = append(out, dgst)
	}
	return out, nil
}

// TestVertexDigests compares the digests that are told without loading with
// those of the loaded vertices, for random definitions and two builds: one that
// owns nothing, and one that owns all that came before.
func TestVertexDigests(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec
	b := newBench(t)
	j, br := b.job("job")
	growing, _ := b.job("growing")
	owned := map[digest.Digest]bool{}
	told := 0
	for range 500 {
		st := randomState(rnd, 1+rnd.IntN(4))
		def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
		require.NoError(t, err)
		if len(def.Def) == 0 {
			continue
		}
		req := &frontend.SolveRequest{Definition: def.ToPB()}
		got, ok := br.vertexDigests(t.Context(), req, j)
		if !ok {
			continue
		}
		want, err := loadedDigests(t, br, req)
		if err != nil {
			continue // nobody can build it
		}
		told++
		require.ElementsMatch(t, want, got)
		position := map[digest.Digest]int{}
		for i, dgst := range got {
			position[dgst] = i
		}
		for i, dt := range req.Definition.Def[:len(got)] {
			var hdr pb.OpHeader
			hdr.Read(dt)
			for _, in := range hdr.Inputs {
				require.Less(t, position[digest.Digest(in)], i, "inputs come first")
			}
		}

		want = slices.DeleteFunc(want, func(dgst digest.Digest) bool { return owned[dgst] })
		got, ok = br.vertexDigests(t.Context(), req, growing)
		require.True(t, ok)
		require.ElementsMatch(t, want, got)
		require.NoError(t, growing.RegisterDigests(t.Context(), got, nil))
		for _, dgst := range got {
			owned[dgst] = true
		}
	}
	require.Greater(t, told, 50, "most definitions of a Go client need no load")
}

func TestVertexDigestsNeedLoad(t *testing.T) {
	b := newBench(t)
	j, br := b.job("job")
	st := run(llb.Image("docker.io/library/img"), "base")
	valid := func() *frontend.SolveRequest {
		return &frontend.SolveRequest{Definition: marshal(t, st)}
	}
	_, ok := br.vertexDigests(t.Context(), valid(), j)
	require.True(t, ok)

	// an empty string that the client wrote and the daemon would not
	reencode := func(dt []byte) []byte {
		return protowire.AppendString(protowire.AppendTag(slices.Clone(dt), 11, protowire.BytesType), "")
	}
	for name, change := range map[string]func(*frontend.SolveRequest){
		"policy":        func(req *frontend.SolveRequest) { req.SourcePolicies = []*spb.Policy{{}} },
		"cache import":  func(req *frontend.SolveRequest) { req.CacheImports = []gw.CacheOptionsEntry{{Type: "test"}} },
		"missing input": func(req *frontend.SolveRequest) { req.Definition.Def = req.Definition.Def[1:] },
		"other order":   func(req *frontend.SolveRequest) { slices.Reverse(req.Definition.Def) },
		"empty":         func(req *frontend.SolveRequest) { req.Definition.Def = nil },
		"encoding":      func(req *frontend.SolveRequest) { req.Definition.Def[0] = reencode(req.Definition.Def[0]) },
		"not LLB":       func(req *frontend.SolveRequest) { req.Definition.Def[0] = []byte("\xff") },
	} {
		t.Run(name, func(t *testing.T) {
			req := valid()
			change(req)
			_, ok := br.vertexDigests(t.Context(), req, j)
			require.False(t, ok)
		})
	}

	j, withPolicy := b.job("policy")
	j.SetValue(keySourcePolicySession, "session")
	_, ok = withPolicy.vertexDigests(t.Context(), valid(), j)
	require.False(t, ok, "the policy of a client may change sources")
	j, withPolicy = b.job("rules")
	j.SetValue(keySourcePolicy, &spb.Policy{Rules: []*spb.Rule{{}}})
	_, ok = withPolicy.vertexDigests(t.Context(), valid(), j)
	require.False(t, ok)
	br.proxyNetwork = true
	_, ok = br.vertexDigests(t.Context(), valid(), j)
	require.False(t, ok, "the proxy network is part of digests")
}

// TestLazySolveReencoded has a client whose encoding of LLB is not that of the
// daemon: the digests that count are those of the loaded vertices.
func TestLazySolveReencoded(t *testing.T) {
	b := newBench(t)
	def := marshal(t, run(llb.Image("docker.io/library/img"), "base"))
	other := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	// constraints without content
	source := protowire.AppendBytes(protowire.AppendTag(nil, 11, protowire.BytesType), nil)
	source = append(source, def.Def[0]...)
	require.NotEqual(t, def.Def[0], source)
	names := map[string]string{digest.FromBytes(def.Def[0]).String(): digest.FromBytes(source).String()}
	other.Def = append(other.Def, source)
	for _, dt := range def.Def[1:] {
		var op pb.Op
		require.NoError(t, op.Unmarshal(dt))
		for _, in := range op.Inputs {
			if name, ok := names[in.Digest]; ok {
				in.Digest = name
			}
		}
		again, err := op.Marshal()
		require.NoError(t, err)
		names[digest.FromBytes(dt).String()] = digest.FromBytes(again).String()
		other.Def = append(other.Def, again)
	}
	for dgst, md := range def.Metadata {
		other.Metadata[names[dgst]] = md
	}

	_, baseBridge := b.job("base")
	lazySolve(t, baseBridge, frontend.SolveRequest{Definition: other})
	_, childBridge := b.job("child")
	require.NoError(t, evaluate(t, lazySolve(t, childBridge, frontend.SolveRequest{Definition: other})))
	require.Equal(t, [][]string{{"base", "child"}}, b.seen("base"))
}
