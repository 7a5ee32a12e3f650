package solver

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var (
	modelSteps = flag.Int("model.steps", 2000, "steps of TestOwnersModel per seed")
	modelSeeds = flag.Int("model.seeds", 2, "number of seeds of TestOwnersModel")
	modelSeed  = flag.Uint64("model.seed", 0, "first seed of TestOwnersModel, 0 for a new one")
)

// modelState is what a state of the active set is expected to be: one for the
// digest itself and one for its no-cache variant.
type modelState struct {
	alive       bool
	ignoreCache bool
	jobs        []string // in the order of their start
}

type modelVertex struct {
	inputs []int
	owners []string // in the order of registration
	states [2]modelState
}

// ownersModel says the same as the solver, in the plainest way: it keeps no
// index and visits everything on each step.
type ownersModel struct {
	vertices []*modelVertex
	started  []string // jobs in the order of their start
}

func (m *ownersModel) register(job string, v int) {
	mv := m.vertices[v]
	if !slices.Contains(mv.owners, job) {
		mv.owners = append(mv.owners, job)
	}
	for _, in := range mv.inputs {
		m.register(job, in)
	}
}

// load follows the rule that an existing no-cache variant serves everybody,
// and that a no-cache build does not share an ordinary state.
func (m *ownersModel) load(job string, v int, ignoreCache bool) {
	mv := m.vertices[v]
	for _, in := range mv.inputs {
		m.load(job, in, ignoreCache)
	}
	st := &mv.states[0]
	switch {
	case mv.states[1].alive:
		st = &mv.states[1]
	case st.alive && !st.ignoreCache && ignoreCache:
		st = &mv.states[1]
	}
	if !st.alive {
		*st = modelState{alive: true, ignoreCache: ignoreCache}
	}
	if !slices.Contains(st.jobs, job) {
		st.jobs = append(st.jobs, job)
		slices.SortFunc(st.jobs, func(a, b string) int {
			return slices.Index(m.started, a) - slices.Index(m.started, b)
		})
	}
}

func (m *ownersModel) discard(job string) {
	is := func(j string) bool { return j == job }
	for _, mv := range m.vertices {
		mv.owners = slices.DeleteFunc(mv.owners, is)
		for i := range mv.states {
			st := &mv.states[i]
			st.jobs = slices.DeleteFunc(st.jobs, is)
			if len(st.jobs) == 0 && len(mv.owners) == 0 {
				*st = modelState{}
			}
		}
	}
}

func (m *ownersModel) sessions(v, variant int) []string {
	out := slices.Clone(m.vertices[v].owners)
	for _, j := range m.vertices[v].states[variant].jobs {
		if !slices.Contains(out, j) {
			out = append(out, j)
		}
	}
	return out
}

// modelGraph returns random vertices, ordinary and no-cache with equal
// digests. With merges several vertices have the same cache key.
func modelGraph(rnd *rand.Rand, n int, merges bool) (m *ownersModel, vertices [2][]Vertex) {
	m = &ownersModel{}
	for i := range n {
		mv := &modelVertex{}
		mv.inputs = append(mv.inputs, rnd.Perm(i)[:min(i, rnd.IntN(3))]...)
		m.vertices = append(m.vertices, mv)
		seed := fmt.Sprintf("seed%d", i)
		if merges {
			seed = fmt.Sprintf("seed%d-%d", len(mv.inputs), rnd.IntN(3))
		}
		for variant := range vertices {
			opt := vtxOpt{name: fmt.Sprintf("v%d", i), cacheKeySeed: seed, ignoreCache: variant == 1}
			for _, in := range mv.inputs {
				opt.inputs = append(opt.inputs, Edge{Vertex: vertices[variant][in]})
			}
			vertices[variant] = append(vertices[variant], vtx(opt))
		}
	}
	return m, vertices
}

// TestOwnersModel runs random steps on a solver and on the model and compares
// the two after each: who owns what, which states are active, which sessions
// they ask and in which order. With edge merges the owners and jobs of a
// vertex may also be those of the vertices that were merged into it, so there
// the solver must know at least what the model knows; and as that includes
// which variants are active, those runs have no-cache builds only.
func TestOwnersModel(t *testing.T) {
	first := *modelSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	for i := range *modelSeeds {
		seed := first + uint64(i)
		for _, merges := range []bool{false, true} {
			t.Run(fmt.Sprintf("seed=%d/merges=%t", seed, merges), func(t *testing.T) {
				runOwnersModel(t, seed, *modelSteps, merges)
			})
		}
	}
}

// forgetfulCache finds nothing, so that every state is computed: what a load
// from the cache logs is not protected from the scheduler.
type forgetfulCache struct {
	CacheManager
}

func (forgetfulCache) Query([]CacheKeyWithSelector, Index, digest.Digest, Index) ([]*CacheKey, error) {
	return nil, nil
}

func runOwnersModel(t *testing.T, seed uint64, steps int, merges bool) {
	rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec
	s := NewSolver(SolverOpt{
		ResolveOpFunc: testOpResolver,
		DefaultCache:  forgetfulCache{NewInMemoryCacheManager()},
	})
	t.Cleanup(s.Close)
	m, vertices := modelGraph(rnd, 14, merges)
	jobs := map[string]*Job{}
	names := func() []string {
		return slices.DeleteFunc(slices.Clone(m.started), func(n string) bool { return jobs[n] == nil })
	}
	variant := func() int { return rnd.IntN(len(vertices)) }
	if merges {
		variant = func() int { return 1 }
	}
	keys := make([][2]digest.Digest, len(m.vertices))
	for i := range keys {
		dgst := vertices[0][i].Digest()
		keys[i] = [2]digest.Digest{dgst, digest.FromString(dgst.String() + "-ignorecache")}
	}

	for step := range steps {
		live := names()
		what := "start"
		switch op := rnd.IntN(10); {
		case len(live) == 0 || op < 2 && len(live) < 8:
			name := fmt.Sprintf("job%d", len(m.started))
			jobs[name] = newTestJob(t, s, name)
			m.started = append(m.started, name)
		case op < 5:
			name, v := live[rnd.IntN(len(live))], rnd.IntN(len(m.vertices))
			what = fmt.Sprintf("%s registers v%d", name, v)
			require.NoError(t, jobs[name].Register(t.Context(), Edge{Vertex: vertices[variant()][v]}))
			m.register(name, v)
		case op < 8:
			name, v, variant := live[rnd.IntN(len(live))], rnd.IntN(len(m.vertices)), variant()
			what = fmt.Sprintf("%s builds v%d variant %d", name, v, variant)
			require.NoError(t, buildVertex(t, jobs[name], vertices[variant][v]), what)
			m.load(name, v, variant == 1)
		default:
			name := live[rnd.IntN(len(live))]
			what = fmt.Sprintf("%s ends", name)
			require.NoError(t, jobs[name].Discard())
			delete(jobs, name)
			m.discard(name)
		}
		compareOwnersModel(t, s, m, keys, !merges, fmt.Sprintf("seed %d step %d: %s", seed, step, what))
	}
	for _, name := range names() {
		require.NoError(t, jobs[name].Discard())
	}
	requireEmpty(t, s)
}

func compareOwnersModel(t *testing.T, s *Solver, m *ownersModel, keys [][2]digest.Digest, exact bool, msg string) {
	t.Helper()
	for v, mv := range m.vertices {
		var owners []string
		for _, reg := range s.owners.lookup(keys[v][0]) {
			owners = append(owners, reg.job.id)
		}
		same := func(want, got []string, what string) {
			if exact {
				require.Equal(t, slices.Clip(want), got, "%s: %s of v%d", msg, what, v)
			} else {
				require.Subset(t, got, want, "%s: %s of v%d", msg, what, v)
			}
		}
		if len(mv.owners) > 0 || exact && len(owners) > 0 {
			same(mv.owners, owners, "owners")
		}
		for variant, key := range keys[v] {
			s.mu.RLock()
			st, ok := s.actives[key]
			s.mu.RUnlock()
			if exact || mv.states[variant].alive {
				require.Equal(t, mv.states[variant].alive, ok, "%s: variant %d of v%d is active", msg, variant, v)
			}
			if !ok {
				continue
			}
			got := session.AllSessionIDs(st.Session())
			require.Equal(t, got, session.AllSessionIDs(st.Session()), "%s: the order of sessions must not change", msg)
			same(m.sessions(v, variant), got, fmt.Sprintf("sessions of variant %d", variant))
			require.True(t, slices.Equal(owners, got[:len(owners)]), "%s: owners %v come first, got %v", msg, owners, got)
		}
	}
}
