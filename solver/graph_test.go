package solver

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// stepOf returns the step of v in the graph of this moment.
func stepOf(t *testing.T, s *Solver, v Vertex) GraphStep {
	t.Helper()
	g := s.Graph()
	i := slices.IndexFunc(g.Steps, func(step GraphStep) bool { return step.Digest == v.Digest() })
	require.GreaterOrEqual(t, i, 0, "the graph has no step %s", v.Name())
	return g.Steps[i]
}

func ownersOf(step GraphStep) (builds []string) {
	for _, o := range step.Owners {
		builds = append(builds, o.Build)
	}
	return builds
}

func TestGraph(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	require.Empty(t, s.Graph().Steps)

	running, release := make(chan struct{}), make(chan struct{})
	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "base", inputs: []Edge{{Vertex: in}}, execPreFunc: func(context.Context) error {
		close(running)
		<-release
		return nil
	}})
	own := newVtxSession(vtxOpt{name: "own", inputs: []Edge{{Vertex: v}}})
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))

	// nobody has asked for it
	g := s.Graph()
	require.Len(t, g.Steps, 2)
	require.Equal(t, "in", g.Steps[0].Name, "inputs come first")
	step := stepOf(t, s, v)
	require.Equal(t, GraphRegistered, step.Status)
	require.Equal(t, "base", step.Name)
	require.Equal(t, []digest.Digest{in.Digest()}, step.Inputs)
	require.Equal(t, []string{"base"}, ownersOf(step))
	require.Equal(t, []string{"base"}, step.Sessions)
	require.Empty(t, step.Jobs)

	// another build runs it
	eg, ctx := errgroup.WithContext(t.Context())
	eg.Go(func() error {
		res, err := child.Build(ctx, Edge{Vertex: own})
		if err != nil {
			return err
		}
		return res.Release(context.WithoutCancel(ctx))
	})
	<-running
	step = stepOf(t, s, v)
	require.Equal(t, GraphRunning, step.Status)
	require.Equal(t, []string{"base"}, ownersOf(step))
	require.Equal(t, []string{"child"}, step.Jobs)
	require.Equal(t, []string{"base", "child"}, step.Sessions)
	require.Equal(t, GraphDone, stepOf(t, s, in).Status)
	step = stepOf(t, s, own)
	require.Equal(t, GraphWaiting, step.Status)
	require.Empty(t, step.Owners)
	require.Equal(t, []string{"child"}, step.Sessions)
	g = s.Graph()
	require.Len(t, g.Builds, 2)
	require.Equal(t, "base", g.Builds[0].Ref)
	require.Equal(t, []int{2, 0}, []int{g.Builds[0].Owned, g.Builds[0].Active})
	require.Equal(t, []int{0, 3}, []int{g.Builds[1].Owned, g.Builds[1].Active})
	require.Equal(t, "child", g.Builds[1].Session)
	close(release)
	require.NoError(t, eg.Wait())

	// kept for the owner
	require.NoError(t, child.Discard())
	step = stepOf(t, s, v)
	require.Equal(t, GraphDone, step.Status)
	require.Empty(t, step.Jobs)
	require.Len(t, s.Graph().Steps, 2)
	require.Len(t, s.Graph().Builds, 1, "a discarded job is no build any more")
	require.NoError(t, base.Discard())
	g = s.Graph()
	require.Empty(t, g.Steps)
	require.Empty(t, g.Builds)
}

func TestGraphByDigest(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	a, b, unknown := digest.FromString("a"), digest.FromString("b"), digest.FromString("unknown")
	asked := 0
	j := newTestJob(t, s, "j")
	require.NoError(t, j.RegisterDigests(t.Context(), []digest.Digest{a, unknown, b}, func() []VertexInfo {
		asked++
		return []VertexInfo{{Digest: a, Name: "git clone https://me:secret@example.com/r"}, {Digest: b, Name: "b", Inputs: []digest.Digest{a}}}
	}))
	require.Zero(t, asked, "nothing is described while it is registered")
	g := s.Graph()
	require.Equal(t, 1, asked)
	names := map[digest.Digest]string{}
	for _, step := range g.Steps {
		names[step.Digest] = step.Name
	}
	require.Equal(t, map[digest.Digest]string{a: "git clone https://xxxxx@example.com/r", b: "b", unknown: ""}, names)
	require.NoError(t, j.Discard())
}

func TestGraphMergedAndNoCache(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v0 := newVtxSession(vtxOpt{name: "v0", cacheKeySeed: "v"})
	v1 := newVtxSession(vtxOpt{name: "v1", cacheKeySeed: "v"})
	j0, j1 := newTestJob(t, s, "j0"), newTestJob(t, s, "j1")
	require.NoError(t, buildVertex(t, j0, v0))
	require.NoError(t, j1.Register(t.Context(), Edge{Vertex: v1}))
	require.NoError(t, buildVertex(t, j1, v1))
	require.Equal(t, v0.Digest(), stepOf(t, s, v1).MergedInto)
	require.Empty(t, stepOf(t, s, v0).MergedInto)
	require.Equal(t, []string{"j1"}, ownersOf(stepOf(t, s, v0)), "a merge hands owners on")

	cached := newVtxSession(vtxOpt{name: "variant", cacheKeySeed: "variant"})
	nocache := newVtxSession(vtxOpt{name: "variant", cacheKeySeed: "variant", ignoreCache: true})
	consumer := newVtxSession(vtxOpt{name: "consumer", inputs: []Edge{{Vertex: nocache}}})
	require.NoError(t, buildVertex(t, j0, cached))
	require.NoError(t, j1.Register(t.Context(), Edge{Vertex: cached}))
	require.NoError(t, buildVertex(t, j1, consumer))
	step := stepOf(t, s, consumer)
	require.Len(t, step.Inputs, 1)
	require.NotEqual(t, nocache.Digest(), step.Inputs[0])
	for _, st := range s.Graph().Steps {
		if st.Digest == step.Inputs[0] {
			require.Equal(t, nocache.Digest(), st.LLBDigest)
			require.Equal(t, []string{"j1"}, ownersOf(st), "both variants have the same owners")
		}
	}
	require.NoError(t, j0.Discard())
	require.NoError(t, j1.Discard())
}

func TestGraphFailed(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v := newVtxSession(vtxOpt{name: "v"})
	v.fail.Store(true)
	j := newTestJob(t, s, "j")
	require.Error(t, buildVertex(t, j, v))
	require.Equal(t, GraphFailed, stepOf(t, s, v).Status)
	require.NoError(t, j.Discard())
}

// TestGraphRace looks at a graph that changes all the time.
func TestGraphRace(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	done := make(chan struct{})
	var eg, readers errgroup.Group
	for range 2 {
		readers.Go(func() error {
			for {
				for _, step := range s.Graph().Steps {
					if len(step.Owners) == 0 && len(step.Jobs) == 0 && len(step.Sessions) > 0 {
						return errors.Errorf("step %s has sessions of nobody", step.Name)
					}
				}
				select {
				case <-done:
					return nil
				default:
				}
			}
		})
	}
	in := newVtxSession(vtxOpt{name: "in", cacheKeySeed: "in"})
	v := newVtxSession(vtxOpt{name: "v", cacheKeySeed: "v", inputs: []Edge{{Vertex: in}}})
	for _, name := range []string{"a", "b"} {
		eg.Go(func() error {
			for range 50 {
				j, err := s.NewJob(name)
				if err != nil {
					// discarded jobs leave the list later
					s.mu.Lock()
					delete(s.jobs, name)
					s.mu.Unlock()
					continue
				}
				j.SessionID = name
				if err := j.Register(t.Context(), Edge{Vertex: v}); err != nil {
					return err
				}
				if err := j.Discard(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// one job at a time builds, see docs/architecture.md on upstream's own races
	eg.Go(func() error {
		for range 20 {
			j, err := s.NewJob("c")
			if err != nil {
				s.mu.Lock()
				delete(s.jobs, "c")
				s.mu.Unlock()
				continue
			}
			res, err := j.Build(t.Context(), Edge{Vertex: v})
			if err != nil {
				return err
			}
			if err := errors.Wrap(res.Release(context.WithoutCancel(t.Context())), "release"); err != nil {
				return err
			}
			if err := j.Discard(); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, eg.Wait())
	close(done)
	require.NoError(t, readers.Wait())
}

func TestDisplayName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"RUN make": "RUN make",
		"https://user:password@example.com/a.git#main": "https://xxxxx@example.com/a.git#main",
		"a http://token@h/x b ssh://git@h:22/y":        "a http://xxxxx@h/x b ssh://xxxxx@h:22/y",
		"https://u:p@ss@h/x":                           "https://xxxxx@h/x",
		"a https://u:p@s@h b ssh://t@@h:22 c@d":        "a https://xxxxx@h b ssh://xxxxx@h:22 c@d",
		"https://u:p?#@h/x":                            "https://xxxxx@h/x",
		"https://h/x@y":                                "https://h/x@y",
		"mail me@example.com":                          "mail me@example.com",
		"docker-image://docker.io/library/a@sha256:00": "docker-image://docker.io/library/a@sha256:00",
	} {
		require.Equal(t, want, displayName(name))
	}
}

// lookup does what Any does when the session answered answers.
func lookup(t *testing.T, st *state, answered string) {
	it := st.SessionIterator()
	asked := 0
	for id := it.NextSession(); id != ""; id = it.NextSession() {
		asked++
		if id == answered {
			break
		}
	}
	o, ok := it.(session.LookupObserver)
	require.True(t, ok)
	o.LookupDone(t.Context(), asked, answered)
}

func TestOwnerStats(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	var asked []int
	s.ObserveLookups(func(_ context.Context, n int) { asked = append(asked, n) })

	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "v", inputs: []Edge{{Vertex: in}}})
	base, child, evaluated := newTestJob(t, s, "base"), newTestJob(t, s, "child"), newTestJob(t, s, "evaluated")
	require.NoError(t, base.Register(t.Context(), Edge{Vertex: v}))
	require.NoError(t, evaluated.RegisterDigests(t.Context(), []digest.Digest{in.Digest()}, nil))
	require.NoError(t, buildVertex(t, evaluated, in))
	require.NoError(t, buildVertex(t, child, v))

	lookup(t, s.getState(Edge{Vertex: v}), "base")
	lookup(t, s.getState(Edge{Vertex: v}), "child")
	lookup(t, s.getState(Edge{Vertex: v}), "")
	lookup(t, s.getState(Edge{Vertex: in}), "evaluated") // an owner that builds it
	require.Equal(t, []int{1, 2, 2, 2}, asked)
	require.Equal(t, OwnerStats{Registered: 2, Owned: 2, AnsweredByBuild: 2, AnsweredByOwner: 1, Unanswered: 1}, s.OwnerStats())

	base.Refuse(t.Context(), errors.New("cannot be loaded"))
	for _, j := range []*Job{base, child, evaluated} {
		require.NoError(t, j.Discard())
	}
	require.ErrorIs(t, base.Register(t.Context(), Edge{Vertex: v}), ErrJobDiscarded)
	require.Equal(t, OwnerStats{Registered: 2, Refused: 1, AnsweredByBuild: 2, AnsweredByOwner: 1, Unanswered: 1}, s.OwnerStats())
}

// TestLookupOfNestedBuild has the build of a parent answer.
func TestLookupOfNestedBuild(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	parent, v := newVtxSession(vtxOpt{name: "parent"}), newVtxSession(vtxOpt{name: "v"})
	j := newTestJob(t, s, "j")
	require.NoError(t, buildVertex(t, j, parent))
	res, err := s.getState(Edge{Vertex: parent}).builder().Build(t.Context(), Edge{Vertex: v})
	require.NoError(t, err)
	require.NoError(t, res.Release(t.Context()))

	lookup(t, s.getState(Edge{Vertex: v}), "j")
	require.Equal(t, int64(1), s.OwnerStats().AnsweredByBuild)
	step := stepOf(t, s, v)
	require.Equal(t, []digest.Digest{parent.Digest()}, step.Parents)
	require.Equal(t, []string{"j"}, step.Sessions)
	require.NoError(t, j.Discard())
}

// logged collects what is logged.
type logged struct {
	mu      sync.Mutex
	entries []*logrus.Entry
}

func (l *logged) Levels() []logrus.Level { return logrus.AllLevels }

func (l *logged) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	return nil
}

// ofOwners returns what was logged about a job. Others log errors of results
// that are released in the background.
func (l *logged) ofOwners() []*logrus.Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.entries), func(e *logrus.Entry) bool { return e.Data["job"] == nil })
}

// find returns the fields of the only message.
func (l *logged) find(t *testing.T, msg string) logrus.Fields {
	t.Helper()
	var found []logrus.Fields
	for _, e := range l.ofOwners() {
		if e.Message == msg {
			require.Equal(t, logrus.DebugLevel, e.Level)
			found = append(found, e.Data)
		}
	}
	require.Len(t, found, 1, "messages %q", msg)
	return found[0]
}

func TestOwnerLogs(t *testing.T) { // not parallel: there is one logger
	logger := bklog.L.Logger
	level, out := logger.Level, logger.Out
	hooks := logger.ReplaceHooks(logrus.LevelHooks{})
	defer func() {
		logger.SetLevel(level)
		logger.SetOutput(out)
		logger.ReplaceHooks(hooks)
	}()
	logger.SetOutput(io.Discard)

	for _, level := range []logrus.Level{logrus.InfoLevel, logrus.DebugLevel} {
		var l logged
		logger.SetLevel(level)
		logger.ReplaceHooks(logrus.LevelHooks{})
		logger.AddHook(&l)

		s := newTestSolver(t)
		v0 := newVtxSession(vtxOpt{name: "v0", cacheKeySeed: "v"})
		v1 := newVtxSession(vtxOpt{name: "v1", cacheKeySeed: "v"})
		j0, j1 := newTestJob(t, s, "j0"), newTestJob(t, s, "j1")
		require.NoError(t, buildVertex(t, j0, v0))
		require.NoError(t, j1.Register(t.Context(), Edge{Vertex: v1}))
		require.NoError(t, buildVertex(t, j1, v1))
		require.NoError(t, j1.Discard())
		require.NoError(t, j0.Discard())
		if level == logrus.InfoLevel {
			require.Empty(t, l.ofOwners(), "ordinary builds log nothing")
			ctx, dgst := t.Context(), v1.Digest()
			allocs := testing.AllocsPerRun(1000, func() { j1.noteRegistered(ctx, dgst, nil) })
			require.Zero(t, allocs, "what is not logged is not prepared")
			continue
		}
		fields := l.find(t, "registered vertex and its ancestors")
		require.Equal(t, "j1", fields["job"])
		require.Equal(t, v1.Digest(), fields["vertex"])
		require.Equal(t, []string{"j1"}, fields["owner"])
		fields = l.find(t, "merged owners")
		require.Equal(t, []string{"j1"}, fields["job"])
		require.Equal(t, v0.Digest(), fields["vertex"])
		require.Equal(t, v1.Digest(), fields["merged_vertex"])
		require.Equal(t, []string{"j1"}, fields["owner"])
		fields = l.find(t, "discarded owner")
		require.Equal(t, "j1", fields["job"])
		require.Equal(t, v0.Digest(), fields["vertex"])
		require.Equal(t, 2, fields["vertices"])
		require.Empty(t, fields["owner"])
	}
}

// BenchmarkGraph reads a graph of 2000 steps that 20 builds own.
func BenchmarkGraph(b *testing.B) {
	s := newTestSolver(b)
	var v Vertex
	for range 2000 {
		opt := vtxOpt{}
		if v != nil {
			opt.inputs = []Edge{{Vertex: v}}
		}
		v = newVtxSession(opt)
	}
	for i := range 20 {
		j := newTestJob(b, s, string(rune('a'+i)))
		require.NoError(b, j.Register(b.Context(), Edge{Vertex: v}))
	}
	start := time.Now()
	for b.Loop() {
		require.Len(b, s.Graph().Steps, 2000)
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/float64(b.N)/1000, "ms/graph")
}
