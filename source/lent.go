package source

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/solver"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/moby/buildkit/util/graphload"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
)

// Resolve constructs an instance of the source from an Identifier. If sessions are
// lent to the vertex and a server refuses the credentials of one, the instance tries
// the next one.
func (sm *Manager) Resolve(ctx context.Context, id Identifier, sessM *session.Manager, vtx solver.Vertex) (SourceInstance, error) {
	src, err := sm.resolve(ctx, id, sessM, vtx)
	if err != nil || !graphload.Enabled() {
		return src, err
	}
	s := &lentInstance{current: src, resolve: func(ctx context.Context) (SourceInstance, error) {
		return sm.resolve(ctx, id, sessM, vtx)
	}}
	switch scheme := id.Scheme(); {
	case strings.HasPrefix(scheme, srctypes.DockerImageScheme): // also those of its blobs
		return s, nil
	case slices.Contains([]string{srctypes.GitScheme, srctypes.HTTPScheme, srctypes.HTTPSScheme}, scheme):
		s.secrets = true
		return s, nil
	}
	return src, nil
}

// lentInstance is a source with credentials. Without lent sessions, it uses one
// instance, as upstream does. With lent sessions, each attempt has its own instance,
// because an instance keeps what it learned from its session. The instance that
// succeeded is used from then on.
//
// An attempt with one session is what upstream does for a build that has only that
// session: the same requests to the server and to the client. It is not possible in
// general to tell which errors are due to credentials, because some servers hide what
// is private. So the next session is tried after any error.
type lentInstance struct {
	resolve func(context.Context) (SourceInstance, error)
	// secrets is true if the credentials are secrets. A session without the secret
	// returns an error, and the first session that has it answers. For registries,
	// every session answers: a client without a login offers anonymous tokens.
	secrets bool
	once    auth.Once

	mu      sync.Mutex // protects the rest
	current SourceInstance
	key     string         // of current
	layers  SourceInstance // the instance whose layers lendLayers has seen
	lent    bool           // true once sessions were lent to an attempt
	refused []string       // sessions that failed before a later one succeeded
}

// CacheKey implements SourceInstance.
func (s *lentInstance) CacheKey(ctx context.Context, jobCtx solver.JobContext, index int) (key, pin string, opts solver.CacheOpts, done bool, err error) {
	err = s.try(ctx, jobCtx, func(ctx context.Context, inst SourceInstance, attemptCtx solver.JobContext) (err error) {
		if key, pin, opts, done, err = inst.CacheKey(ctx, attemptCtx, index); err == nil {
			s.lendLayers(inst, jobCtx, opts)
		}
		return err
	})
	if err != nil {
		return "", "", nil, false, err
	}
	if index == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.key = key
	}
	return key, pin, opts, done, nil
}

// Snapshot implements SourceInstance. An instance that has not computed the key does
// so first, because its session may get other content.
func (s *lentInstance) Snapshot(ctx context.Context, jobCtx solver.JobContext) (ref cache.ImmutableRef, err error) {
	s.mu.Lock()
	keyed, want := s.current, s.key
	s.mu.Unlock()
	err = s.try(ctx, jobCtx, func(ctx context.Context, inst SourceInstance, attemptCtx solver.JobContext) (err error) {
		if inst != keyed {
			key, _, opts, _, err := inst.CacheKey(ctx, attemptCtx, 0)
			if err != nil {
				return err
			}
			if key != want {
				return errors.Errorf("source changed from %s to %s", want, key)
			}
			s.lendLayers(inst, jobCtx, opts)
		}
		ref, err = inst.Snapshot(ctx, attemptCtx)
		return err
	})
	return ref, err
}

// sessionContext is a JobContext with other sessions.
type sessionContext struct {
	solver.JobContext
	g session.Group
}

// Session implements solver.JobContext.
func (c sessionContext) Session() session.Group {
	return c.g
}

// try calls f with the current instance. If sessions are lent to jobCtx and an
// attempt fails, try calls f again with the next session and a new instance.
func (s *lentInstance) try(ctx context.Context, jobCtx solver.JobContext, f func(context.Context, SourceInstance, solver.JobContext) error) error {
	lent := jobCtx != nil && session.IsLent(jobCtx.Session())
	s.mu.Lock()
	s.lent = s.lent || lent
	inst, again := s.current, len(s.refused) > 0
	s.mu.Unlock()
	if lent {
		ctx = s.once.Context(ctx)
	}
	attempt := func(jobCtx solver.JobContext) (err error) {
		if inst == nil {
			if inst, err = s.resolve(ctx); err != nil {
				return err
			}
		}
		used := inst
		err = f(ctx, used, jobCtx)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case err == nil:
			s.current = used
		case lent:
			inst = nil // it can have kept the error of a session that is only lent
			if s.current == used {
				s.current = nil
			}
		}
		return err
	}
	if !lent {
		return attempt(jobCtx)
	}
	g := jobCtx.Session()
	with := func(g session.Group) error { return attempt(sessionContext{jobCtx, g}) }
	if s.secrets && !again {
		if err := with(g); err == nil || context.Cause(ctx) != nil {
			return err
		}
	}
	lenders := func() []string { ids, _ := session.SplitLent(g); return ids }
	own := func() session.Group { _, own := session.SplitLent(g); return own }
	return s.oneByOne(ctx, lenders, own, with)
}

// oneByOne calls f with the sessions of the lenders, except those that were refused
// before, and then with own, until f succeeds.
func (s *lentInstance) oneByOne(ctx context.Context, lenders func() []string, own func() session.Group, f func(session.Group) error) error {
	lent := func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.DeleteFunc(lenders(), func(id string) bool { return slices.Contains(s.refused, id) })
	}
	var failed []string
	return session.OneByOne(ctx, lent, own, func(g session.Group) error {
		if err := f(g); err != nil {
			failed = append(failed, session.AllSessionIDs(g)...)
			return err
		}
		s.mu.Lock()
		s.refused = append(s.refused, failed...)
		s.mu.Unlock()
		return nil
	})
}

// layerLender is the group of a vertex. LentTo returns the sessions that it lends to
// one of the builds that build the vertex.
type layerLender interface {
	LentTo(user session.Group) []string
}

// lendLayers makes the layers of an image use the sessions that the group of its vertex
// lends to the step, exporter or client that reads them. Pushing does not use these
// sessions, but those of the exporter.
func (s *lentInstance) lendLayers(inst SourceInstance, jobCtx solver.JobContext, opts solver.CacheOpts) {
	if jobCtx == nil {
		return
	}
	lender, ok := jobCtx.Session().(layerLender)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok || s.layers == inst {
		return
	}
	s.layers = inst
	for _, opt := range opts {
		if dh, ok := opt.(*cache.DescHandler); ok {
			provider := dh.Provider
			dh.Provider = func(user session.Group) content.Provider {
				lenders := func() []string { return lender.LentTo(user) }
				s.mu.Lock()
				wasLent := s.lent
				s.mu.Unlock()
				if len(lenders()) == 0 && !wasLent {
					return provider(user)
				}
				own := func() session.Group { _, own := session.SplitLent(user); return own }
				return &lentProvider{instance: s, provider: provider, image: dh.Ref, lenders: lenders, own: own}
			}
		}
	}
}

// lentProvider provides layers with the lent sessions, and then with own. If no
// session is lent any more, the build whose login found the image has ended.
type lentProvider struct {
	instance *lentInstance
	image    string
	provider func(session.Group) content.Provider
	lenders  func() []string
	own      func() session.Group
}

// ReaderAt implements content.Provider. It sends no request to a registry; reading
// does.
func (p *lentProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	return &lentReader{lentProvider: p, ctx: p.instance.once.Context(ctx), desc: desc}, nil
}

// lentReader reads a layer with the first session that can.
type lentReader struct {
	*lentProvider
	ctx  context.Context
	desc ocispecs.Descriptor
	content.ReaderAt
}

// ReadAt implements content.ReaderAt.
func (r *lentReader) ReadAt(b []byte, off int64) (n int, err error) {
	if r.ReaderAt != nil {
		return r.ReaderAt.ReadAt(b, off)
	}
	failed := r.instance.oneByOne(r.ctx, r.lenders, r.own, func(g session.Group) error {
		ra, openErr := r.provider(g).ReaderAt(r.ctx, r.desc)
		if openErr != nil {
			return openErr
		}
		if n, err = ra.ReadAt(b, off); err != nil && n == 0 && !errors.Is(err, io.EOF) {
			ra.Close()
			return err
		}
		r.ReaderAt = ra
		return nil
	})
	if failed != nil {
		var status remoteserrors.ErrUnexpectedStatus
		if errors.As(failed, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden) {
			failed = errors.New(failed.Error()) // hide the type: exporters print the answer of a registry without its host
		}
		return 0, errors.Wrapf(failed, "failed to fetch layer %s of %s", r.desc.Digest, r.image)
	}
	return n, err
}

// Size implements content.ReaderAt.
func (r *lentReader) Size() int64 {
	return r.desc.Size
}

// Close implements content.ReaderAt.
func (r *lentReader) Close() error {
	if r.ReaderAt == nil {
		return nil
	}
	return r.ReaderAt.Close()
}
