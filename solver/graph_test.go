package solver

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// stepOf returns the step of v in the current graph.
func stepOf(t *testing.T, s *Solver, v Vertex) GraphStep {
	t.Helper()
	g := s.Graph()
	i := slices.IndexFunc(g.Steps, func(step GraphStep) bool { return step.Digest == v.Digest() })
	require.GreaterOrEqual(t, i, 0, "the graph has no step %s", v.Name())
	return g.Steps[i]
}

// sessionIDs returns the sessions of a step, and which of them are lent.
func sessionIDs(step GraphStep) (ids, lent []string) {
	for _, s := range step.Sessions {
		ids = append(ids, s.ID)
		if s.Lent {
			lent = append(lent, s.ID)
		}
	}
	return ids, lent
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
	base, child, stranger := newTestJob(t, s, "base"), newTestJob(t, s, "child"), newTestJob(t, s, "stranger")
	solved(t, base, v)
	solved(t, stranger, in)
	child.ChainOn(resultOf(v))

	// no build has asked for it
	g := s.Graph()
	require.Len(t, g.Steps, 2)
	require.Equal(t, "in", g.Steps[0].Name, "inputs come first")
	require.Equal(t, []string{"base", "stranger"}, g.Steps[0].Owners)
	step := stepOf(t, s, v)
	require.Equal(t, GraphRegistered, step.Status)
	require.Equal(t, "base", step.Name)
	require.Equal(t, []digest.Digest{in.Digest()}, step.Inputs)
	require.Equal(t, []string{"base"}, step.Owners)
	require.Empty(t, step.Sessions)
	require.Empty(t, step.Jobs)

	// the child runs it
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
	require.Equal(t, []string{"base"}, step.Owners)
	require.Equal(t, []string{"child"}, step.Jobs)
	require.Equal(t, []GraphSession{{ID: "base", Build: "base", Lent: true}, {ID: "child", Build: "child"}}, step.Sessions)
	step = stepOf(t, s, in)
	require.Equal(t, GraphDone, step.Status)
	ids, lent := sessionIDs(step)
	require.Equal(t, []string{"base", "child"}, ids, "a stranger is not asked")
	require.Equal(t, []string{"base"}, lent)
	step = stepOf(t, s, own)
	require.Equal(t, GraphWaiting, step.Status)
	require.Empty(t, step.Owners)
	require.Equal(t, []GraphSession{{ID: "child", Build: "child"}}, step.Sessions)
	g = s.Graph()
	require.Len(t, g.Builds, 3)
	require.Equal(t, "base", g.Builds[0].Ref)
	require.Equal(t, []int{2, 0}, []int{g.Builds[0].Owned, g.Builds[0].Active})
	require.Empty(t, g.Builds[0].ChainedOn)
	require.Equal(t, []int{0, 3}, []int{g.Builds[1].Owned, g.Builds[1].Active})
	require.Equal(t, []string{"base"}, g.Builds[1].ChainedOn)
	require.Equal(t, "child", g.Builds[1].Session)

	// the scheduler is busy for long, for example with a cache import
	s.s.mu.Lock()
	require.Equal(t, GraphUnknown, stepOf(t, s, v).Status)
	s.s.mu.Unlock()
	close(release)
	require.NoError(t, eg.Wait())

	require.NoError(t, child.Discard())
	require.Equal(t, GraphRegistered, stepOf(t, s, v).Status, "nothing is kept")
	require.Len(t, s.Graph().Builds, 2, "a discarded job is not listed")
	require.NoError(t, base.Discard())
	require.NoError(t, stranger.Discard())
	g = s.Graph()
	require.Empty(t, g.Steps)
	require.Empty(t, g.Builds)
}

func TestGraphMergedAndNoCache(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v0 := newVtxSession(vtxOpt{name: "v0", cacheKeySeed: "v"})
	v1 := newVtxSession(vtxOpt{name: "v1", cacheKeySeed: "v"})
	j0, j1 := newTestJob(t, s, "j0"), newTestJob(t, s, "j1")
	require.NoError(t, buildVertex(t, j0, v0))
	require.NoError(t, j1.Register(Edge{Vertex: v1}))
	require.NoError(t, buildVertex(t, j1, v1))
	require.Equal(t, v0.Digest(), stepOf(t, s, v1).MergedInto)
	require.Empty(t, stepOf(t, s, v0).MergedInto)
	require.Equal(t, []string{"j1"}, stepOf(t, s, v0).Owners, "owners of what was merged are found")

	cached := newVtxSession(vtxOpt{name: "variant", cacheKeySeed: "variant"})
	nocache := newVtxSession(vtxOpt{name: "variant", cacheKeySeed: "variant", ignoreCache: true})
	consumer := newVtxSession(vtxOpt{name: "consumer", inputs: []Edge{{Vertex: nocache}}})
	require.NoError(t, buildVertex(t, j0, cached))
	require.NoError(t, j1.Register(Edge{Vertex: cached}))
	require.NoError(t, buildVertex(t, j1, consumer))
	step := stepOf(t, s, consumer)
	require.Len(t, step.Inputs, 1)
	require.NotEqual(t, nocache.Digest(), step.Inputs[0])
	for _, st := range s.Graph().Steps {
		if st.Digest == step.Inputs[0] {
			require.Equal(t, nocache.Digest(), st.LLBDigest)
			require.Equal(t, []string{"j1"}, st.Owners, "both variants have the same owners")
		}
	}
	require.NoError(t, j0.Discard())
	require.NoError(t, j1.Discard())
}

func TestGraphFailedAndCached(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	v, ok := newVtxSession(vtxOpt{name: "v"}), newVtxSession(vtxOpt{name: "ok", cacheKeySeed: "ok"})
	v.fail.Store(true)
	j := newTestJob(t, s, "j")
	require.Error(t, buildVertex(t, j, v))
	require.Equal(t, GraphFailed, stepOf(t, s, v).Status)
	require.NoError(t, buildVertex(t, j, ok))
	require.Equal(t, GraphDone, stepOf(t, s, ok).Status)
	require.NoError(t, j.Discard())
	j = newTestJob(t, s, "next")
	require.NoError(t, buildVertex(t, j, ok))
	require.Equal(t, GraphCached, stepOf(t, s, ok).Status)
	require.NoError(t, j.Discard())
}

// TestGraphRace reads a graph that changes all the time.
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
						return errors.Errorf("step %s has sessions of no build", step.Name)
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
				if err := j.Register(Edge{Vertex: v}); err != nil {
					return err
				}
				if err := j.Discard(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// only one job builds at a time: upstream's solver has data races otherwise
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

func TestChainStats(t *testing.T) {
	t.Parallel()
	s := newTestSolver(t)
	in := newVtxSession(vtxOpt{name: "in"})
	v := newVtxSession(vtxOpt{name: "v", inputs: []Edge{{Vertex: in}}})
	base, child := newTestJob(t, s, "base"), newTestJob(t, s, "child")
	solved(t, base, v)
	child.ChainOn(resultOf(v))
	_, err := s.load(t.Context(), v, nil, child)
	require.NoError(t, err)
	var asked []int
	s.ObserveLookups(func(_ context.Context, n int) { asked = append(asked, n) })
	for _, answer := range []struct {
		n              int
		answered, lent bool
	}{{1, true, true}, {2, true, false}, {2, false, false}, {2, false, true}} {
		it, ok := s.getState(Edge{Vertex: v}).SessionIterator().(session.LookupObserver)
		require.True(t, ok)
		it.LookupDone(t.Context(), answer.n, answer.answered, answer.lent)
	}
	require.Equal(t, ChainStats{Definitions: 1, Owned: 2, Chained: 1, AnsweredByBase: 1, AnsweredByBuild: 1, Unanswered: 2}, s.ChainStats())
	require.Equal(t, []int{1, 2, 2, 2}, asked)
	require.NoError(t, child.Discard())
	require.NoError(t, base.Discard())
	st := s.ChainStats()
	require.Zero(t, st.Owned)
	require.Zero(t, st.Chained)
}

func TestChainLog(t *testing.T) { // not parallel: there is one logger
	logger := bklog.L.Logger
	level, out := logger.GetLevel(), logger.Out
	var log bytes.Buffer
	logger.SetOutput(&log)
	t.Cleanup(func() {
		logger.SetLevel(level)
		logger.SetOutput(out)
	})
	for _, level := range []logrus.Level{logrus.InfoLevel, logrus.DebugLevel} {
		logger.SetLevel(level)
		log.Reset()
		s := newTestSolver(t)
		v := newVtxSession(vtxOpt{name: "v"})
		base, child := newTestJob(t, s, "the-base"), newTestJob(t, s, "the-child")
		solved(t, base, v)
		child.ChainOn(resultOf(v))
		child.ChainOn(resultOf(v))
		if level == logrus.InfoLevel {
			require.Empty(t, log.String())
			continue
		}
		require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("chained")))
		for _, field := range []string{"job=the-child", "base=the-base", "result=\"" + digest.FromBytes(resultOf(v)).String()} {
			require.Contains(t, log.String(), field)
		}
	}
}
