package source

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/moby/buildkit/util/graphload"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// lentSessions is a group whose first sessions are lent.
type lentSessions struct {
	ids  []string
	lent int
}

type lentSessionsIterator struct {
	lentSessions
	next int
}

func (g lentSessions) Lent() bool { return g.lent > 0 }
func (g lentSessions) LentTo(user session.Group) []string {
	if user == nil {
		return nil
	}
	return slices.Clone(g.ids[:g.lent])
}

func (g lentSessions) SessionIterator() session.Iterator {
	return &lentSessionsIterator{lentSessions: g}
}

func (it *lentSessionsIterator) Lent() bool { return it.next <= it.lent }
func (it *lentSessionsIterator) NextSession() string {
	if it.next == len(it.ids) {
		return ""
	}
	it.next++
	return it.ids[it.next-1]
}

type sessions struct {
	solver.JobContext
	session.Group
}

func (s sessions) Session() session.Group { return s.Group }

// scheme identifies a server.
type scheme struct {
	Identifier
	string
}

func (s scheme) Scheme() string { return s.string }

// server is a source that accepts some sessions. As with a real source, an instance
// keeps its error.
type server struct {
	scheme   string
	declines map[string]bool   // sessions that have nothing to offer
	content  map[string]string // what a session gets; a session without content is refused
	moved    map[string]string // content of snapshots, if it differs
	onAsk    func(id string)   // called with each session that is asked, if it is not nil

	mu    sync.Mutex
	asked []string
}

func (s *server) Schemes() []string { return []string{s.scheme} }
func (s *server) Identifier(string, string, map[string]string, *pb.Platform) (Identifier, error) {
	return nil, nil
}

func (s *server) Resolve(context.Context, Identifier, *session.Manager, solver.Vertex) (SourceInstance, error) {
	return &instance{server: s}, nil
}

// ask sends a request with the first session of g that has something to offer.
func (s *server) ask(op string, g session.Group, content map[string]string) (string, error) {
	ids := slices.DeleteFunc(session.AllSessionIDs(g), func(id string) bool { return s.declines[id] })
	id := append(ids, "anonymous")[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, op+" "+id)
	if s.onAsk != nil {
		s.onAsk(id)
	}
	if c, ok := content[id]; ok {
		return c, nil
	}
	return "", errors.Errorf("%s is refused", id)
}

type instance struct {
	*server
	err error
	key string
}

func (i *instance) CacheKey(_ context.Context, jobCtx solver.JobContext, _ int) (string, string, solver.CacheOpts, bool, error) {
	if i.key == "" && i.err == nil {
		i.key, i.err = i.ask("key", jobCtx.Session(), i.content)
	}
	opts := solver.CacheOpts{}
	for layer := range 4 {
		dgst := digest.FromString(fmt.Sprint(layer))
		opts[cache.DescHandlerKey(dgst)] = &cache.DescHandler{Provider: func(g session.Group) content.Provider {
			return &layers{i.server, g}
		}}
	}
	return i.key, "", opts, true, i.err
}

func (i *instance) Snapshot(_ context.Context, jobCtx solver.JobContext) (cache.ImmutableRef, error) {
	if i.key == "" {
		return nil, errors.New("the key was found by another instance")
	}
	content := i.content
	if i.moved != nil {
		content = i.moved
	}
	_, err := i.ask("snapshot", jobCtx.Session(), content)
	return nil, err
}

type layers struct {
	*server
	g session.Group
}

type layer struct {
	*layers
	opened bool
}

func (l *layers) ReaderAt(context.Context, ocispecs.Descriptor) (content.ReaderAt, error) {
	return &layer{layers: l}, nil
}

func (l *layer) Close() error { return nil }
func (l *layer) Size() int64  { return 4 }
func (l *layer) ReadAt(b []byte, off int64) (int, error) {
	if !l.opened {
		if _, err := l.ask("layer", l.g, l.content); err != nil {
			return 0, err
		}
		l.opened = true
	}
	n := copy(b, "blob"[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// newInstance returns an instance of s, as Manager.Resolve does.
func newInstance(t *testing.T, s *server) SourceInstance {
	m, err := NewManager()
	require.NoError(t, err)
	m.Register(s)
	inst, err := m.Resolve(t.Context(), scheme{string: s.scheme}, nil, nil)
	require.NoError(t, err)
	return inst
}

func TestLentSessions(t *testing.T) {
	if !graphload.Enabled() {
		t.Skip("nothing is lent")
	}
	for _, tc := range []struct {
		name     string
		server   *server
		sessions lentSessions
		asked    []string
		err      string
	}{
		{
			name:     "a group to which nothing is lent is asked once",
			server:   &server{scheme: srctypes.DockerImageScheme},
			sessions: lentSessions{ids: []string{"a", "b"}},
			asked:    []string{"key a"},
			err:      "a is refused",
		},
		{
			name:     "base is accepted",
			server:   &server{scheme: srctypes.DockerImageScheme, content: map[string]string{"base": "x", "child": "x"}},
			sessions: lentSessions{ids: []string{"base", "child"}, lent: 1},
			asked:    []string{"key base", "snapshot base"},
		},
		{
			name:     "the session that is accepted is used from then on",
			server:   &server{scheme: srctypes.DockerImageScheme, content: map[string]string{"child": "x"}},
			sessions: lentSessions{ids: []string{"base", "other", "child"}, lent: 2},
			asked:    []string{"key base", "key other", "key child", "snapshot child"},
		},
		{
			name:     "all are refused",
			server:   &server{scheme: srctypes.DockerImageScheme},
			sessions: lentSessions{ids: []string{"base", "other", "child"}, lent: 2},
			asked:    []string{"key base", "key other", "key child"},
			err:      "child is refused (3 builds were asked)",
		},
		{
			name:     "base has no secret",
			server:   &server{scheme: srctypes.HTTPScheme, declines: map[string]bool{"base": true}, content: map[string]string{"anonymous": "log in", "child": "x"}},
			sessions: lentSessions{ids: []string{"base", "child"}, lent: 1},
			asked:    []string{"key child", "snapshot child"},
		},
		{
			name:     "the secret of base is refused",
			server:   &server{scheme: srctypes.GitScheme, content: map[string]string{"child": "x"}},
			sessions: lentSessions{ids: []string{"base", "child"}, lent: 1},
			asked:    []string{"key base", "key base", "key child", "snapshot child"},
		},
		{
			name: "only the child gets the content",
			server: &server{
				scheme: srctypes.GitScheme, content: map[string]string{"base": "x", "child": "x"}, moved: map[string]string{"child": "x"},
			},
			sessions: lentSessions{ids: []string{"base", "child"}, lent: 1},
			asked:    []string{"key base", "snapshot base", "key base", "snapshot base", "key child", "snapshot child"},
		},
		{
			name: "the content of the child is not that of the key",
			server: &server{
				scheme: srctypes.GitScheme, content: map[string]string{"base": "x", "child": "y"}, moved: map[string]string{"child": "y"},
			},
			sessions: lentSessions{ids: []string{"base", "child"}, lent: 1},
			asked:    []string{"key base", "snapshot base", "key base", "snapshot base", "key child"},
			err:      "source changed from x to y",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inst := newInstance(t, tc.server)
			jobCtx := sessions{Group: tc.sessions}
			_, _, _, _, err := inst.CacheKey(t.Context(), jobCtx, 0)
			if err == nil {
				_, err = inst.Snapshot(t.Context(), jobCtx)
			}
			if tc.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.err)
			}
			require.Equal(t, tc.asked, tc.server.asked)
		})
	}
}

// TestLentErrorIsNotKept cancels an attempt after base was refused. The error of base
// is not that of a later attempt, to which nothing is lent.
func TestLentErrorIsNotKept(t *testing.T) {
	if !graphload.Enabled() {
		t.Skip("nothing is lent")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	srv := &server{scheme: srctypes.DockerImageScheme, content: map[string]string{"later": "x"}, onAsk: func(id string) {
		if id == "child" {
			cancel(errors.WithStack(context.Canceled))
		}
	}}
	inst := newInstance(t, srv)
	_, _, _, _, err := inst.CacheKey(ctx, sessions{Group: lentSessions{ids: []string{"base", "child"}, lent: 1}}, 0)
	require.EqualError(t, err, "child is refused", "a build that was canceled does not say how many were asked")
	key, _, _, _, err := inst.CacheKey(t.Context(), sessions{Group: lentSessions{ids: []string{"later"}}}, 0)
	require.NoError(t, err)
	require.Equal(t, "x", key)
	require.Equal(t, []string{"key base", "key child", "key later"}, srv.asked)
}

// TestLentLayers reads the layers of an image concurrently, for users with and without
// sessions, of which the server accepts some.
func TestLentLayers(t *testing.T) {
	if !graphload.Enabled() {
		t.Skip("nothing is lent")
	}
	seed := rand.Uint64() //nolint:gosec // not for secrets
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	for range 2000 {
		s := &server{scheme: srctypes.DockerImageScheme, content: map[string]string{}}
		g := lentSessions{lent: rnd.IntN(3)}
		for i := range g.lent + 1 {
			id := fmt.Sprint(i)
			g.ids = append(g.ids, id)
			if rnd.IntN(2) == 0 {
				s.content[id] = "x"
			}
		}
		var user session.Group
		if rnd.IntN(2) == 0 {
			user = session.NewGroup("user")
			if rnd.IntN(2) == 0 {
				s.content["user"] = "x"
			}
		}
		inst := newInstance(t, s)
		_, _, opts, _, err := inst.CacheKey(t.Context(), sessions{Group: g}, 0)
		accepted := func(id string) bool { return s.content[id] != "" }
		if !slices.ContainsFunc(g.ids, accepted) {
			require.ErrorContains(t, err, "refused")
			continue
		}
		require.NoError(t, err)

		readable := user != nil && (accepted("user") || slices.ContainsFunc(g.ids[:g.lent], accepted))
		asked := len(s.asked)
		var eg errgroup.Group
		for _, opt := range slices.Collect(maps.Values(opts)) {
			eg.Go(func() error {
				ra, err := opt.(*cache.DescHandler).Provider(user).ReaderAt(t.Context(), ocispecs.Descriptor{Size: 4})
				if err != nil {
					return err
				}
				defer ra.Close()
				dt, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
				if err == nil && string(dt) != "blob" {
					return errors.Errorf("read %q", dt)
				}
				return err
			})
		}
		err = eg.Wait()
		if readable {
			require.NoError(t, err, "%v of %v, %v", s.content, g, s.asked)
		} else {
			require.ErrorContains(t, err, "refused", "%v of %v", s.content, g)
		}
		for _, req := range s.asked[asked:] {
			for _, before := range s.asked[:asked-1] {
				require.NotEqual(t, before, "key"+req[len("layer"):], "a refused session is not asked again")
			}
		}
	}
}
