package llbsolver

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// This file uses nothing of the change. Its benchmarks also run in a tree without it,
// to compare the two.

// bench is a solver whose ops run nothing and record the sessions that they can ask.
type bench struct {
	worker.Worker
	t      testing.TB
	solver *solver.Solver

	mu       sync.Mutex
	sessions map[string][][]string // by the name of the vertex
	lookup   func(name string, it session.Iterator)
	fail     func(name string) error
	run      func(ctx context.Context, name string) error
	pruned   []map[string]bool
	parsed   atomic.Int64 // sources for which a policy was evaluated
	imports  atomic.Int64
	results  atomic.Int64 // results of ops that have not been released
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, sessions: map[string][][]string{}}
	b.solver = solver.NewSolver(solver.SolverOpt{ResolveOpFunc: func(v solver.Vertex, _ solver.Builder) (solver.Op, error) {
		return &benchOp{bench: b, v: v}, nil
	}})
	t.Cleanup(b.solver.Close)
	return b
}

func (b *bench) CDIManager() *cdidevices.Manager { return nil }

func (b *bench) ParseSource(*pb.SourceOp, *pb.Platform) (source.Identifier, error) {
	b.parsed.Add(1)
	return nil, errors.New("any source")
}

func (b *bench) PruneCacheMounts(_ context.Context, ids map[string]bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pruned = append(b.pruned, ids)
	return nil
}

func (b *bench) seen(name string) [][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[name]
}

// job starts a build with a session of the same id. The client of the build uses the
// returned bridge.
func (b *bench) job(id string) (*solver.Job, *provenanceBridge) {
	j, err := b.solver.NewJob(id)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { j.Discard() })
	j.SessionID = id
	j.SetValue(keyEntitlements, entitlements.Set{})
	br := b.bridge(j)
	br.rootReq = &frontend.SolveRequest{}
	return j, br
}

func (b *bench) bridge(builder solver.Builder) *provenanceBridge {
	return &provenanceBridge{llbBridge: &llbBridge{
		builder:         builder,
		resolveWorker:   func() (worker.Worker, error) { return b, nil },
		eachWorker:      func(f func(worker.Worker) error) error { return f(b) },
		cms:             map[string]solver.CacheManager{},
		provenanceStore: newProvenanceStore(),
		resolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"test": func(context.Context, session.Group, map[string]string) (remotecache.Importer, ocispecs.Descriptor, error) {
				b.imports.Add(1)
				return nil, ocispecs.Descriptor{}, errors.New("nothing to import")
			},
		},
	}}
}

type benchOp struct {
	*bench
	v solver.Vertex
}

func (op *benchOp) CacheMap(context.Context, solver.JobContext, int) (*solver.CacheMap, bool, error) {
	cm := &solver.CacheMap{Digest: digest.FromString(op.v.Digest().String())}
	for range op.v.Inputs() {
		cm.Deps = append(cm.Deps, struct {
			Selector          digest.Digest
			ComputeDigestFunc solver.ResultBasedCacheFunc
			PreprocessFunc    solver.PreprocessFunc
		}{})
	}
	return cm, true, nil
}

func (op *benchOp) Exec(ctx context.Context, jobCtx solver.JobContext, _ []solver.Result) ([]solver.Result, error) {
	op.mu.Lock()
	op.sessions[op.v.Name()] = append(op.sessions[op.v.Name()], session.AllSessionIDs(jobCtx.Session()))
	op.mu.Unlock()
	if op.lookup != nil {
		op.lookup(op.v.Name(), jobCtx.Session().SessionIterator())
	}
	if op.fail != nil {
		if err := op.fail(op.v.Name()); err != nil {
			return nil, err
		}
	}
	if op.run != nil {
		if err := op.run(ctx, op.v.Name()); err != nil {
			return nil, err
		}
	}
	op.results.Add(1)
	return []solver.Result{&benchResult{id: op.v.Digest().String(), bench: op.bench}}, nil
}

func (op *benchOp) Acquire(context.Context) (solver.ReleaseFunc, error) {
	return func() {}, nil
}

type benchResult struct {
	id    string
	bench *bench
}

func (r *benchResult) ID() string           { return r.id }
func (r *benchResult) Sys() any             { return r }
func (r *benchResult) Clone() solver.Result { return r }
func (r *benchResult) Release(context.Context) error {
	r.bench.results.Add(-1)
	return nil
}

// freshSteps returns the definition of n exec steps that no solver has seen before. The
// steps are chains of up to 100 and their merge, because the scheduler takes time that
// grows with the square of the depth.
func freshSteps(b *testing.B, n int) *pb.Definition {
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	add := func(op *pb.Op) *pb.Input {
		dt, err := op.Marshal()
		require.NoError(b, err)
		dgst := digest.FromBytes(dt).String()
		def.Def = append(def.Def, dt)
		def.Metadata[dgst] = &pb.OpMetadata{Description: map[string]string{"llb.customname": "step"}}
		return &pb.Input{Digest: dgst}
	}
	source := add(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://" + identity.NewID()}}})
	var ends []*pb.Input
	var mergeInputs []*pb.MergeInput
	for i := range n {
		last := source
		if i%100 > 0 {
			last = ends[len(ends)-1]
		} else {
			mergeInputs = append(mergeInputs, &pb.MergeInput{Input: int64(len(ends))})
			ends = append(ends, nil)
		}
		ends[len(ends)-1] = add(&pb.Op{
			Inputs: []*pb.Input{last},
			Op: &pb.Op_Exec{Exec: &pb.ExecOp{
				Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", fmt.Sprintf("step %d of %d", i, n)}, Cwd: "/"},
				Mounts: []*pb.Mount{
					{Dest: "/", Output: 0},
					{Dest: "/run/secrets/token", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token"}},
				},
			}},
		})
	}
	if len(ends) > 1 {
		ends = []*pb.Input{add(&pb.Op{Inputs: ends, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: mergeInputs}}})}
	}
	add(&pb.Op{Inputs: ends})
	return def
}

var errLoaded = errors.New("loaded")

// loadOnly is a builder that does not build what is loaded for it.
type loadOnly struct{ solver.Builder }

func (loadOnly) Build(context.Context, solver.Edge) (solver.CachedResultWithProvenance, error) {
	return nil, errLoaded
}

// BenchmarkSolve lets a client solve new steps. Afterwards, the client does nothing,
// evaluates them, or does only the part of an evaluation that loads them.
func BenchmarkSolve(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000} {
		for _, then := range []string{"nothing", "load", "evaluate"} {
			b.Run(fmt.Sprintf("then=%s/steps=%d", then, n), func(b *testing.B) {
				bench := newBench(b)
				for b.Loop() {
					b.StopTimer()
					def := freshSteps(b, n)
					j, br := bench.job(identity.NewID())
					if then == "load" {
						br.builder = loadOnly{j}
					}
					b.StartTimer()

					res, err := br.Solve(b.Context(), frontend.SolveRequest{Definition: def}, "")
					require.NoError(b, err)
					switch then {
					case "load":
						_, err := res.Ref.Result(b.Context())
						require.ErrorIs(b, err, errLoaded)
					case "evaluate":
						_, err := res.Ref.Result(b.Context())
						require.NoError(b, err)
					}

					b.StopTimer()
					require.NoError(b, res.Ref.Release(b.Context()))
					require.NoError(b, j.Discard())
					b.StartTimer()
				}
			})
		}
	}
}
