package session

import (
	"context"
	stderrors "errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session/testutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

var errNotHere = errors.New("not here")

// connect runs n sessions and returns them with their ids.
func connect(t *testing.T, sm *Manager, n int) (sessions []*Session, ids []string) {
	for range n {
		s, err := NewSession(t.Context(), "")
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(context.WithoutCancel(t.Context()), Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn))))
		}()
		_, err = sm.Get(t.Context(), s.ID(), false)
		require.NoError(t, err)
		t.Cleanup(func() {
			s.Close()
			<-done
		})
		sessions, ids = append(sessions, s), append(ids, s.ID())
	}
	return sessions, ids
}

// lentGroup is a group whose first sessions are lent. It records lookups.
type lentGroup struct {
	ids     []string
	lent    int
	lookups *[]string
}

type lentIterator struct {
	*lentGroup
	next int
}

func (g *lentGroup) Lent() bool                { return g.lent > 0 }
func (g *lentGroup) SessionIterator() Iterator { return &lentIterator{lentGroup: g} }

func (it *lentIterator) NextSession() string {
	if it.next == len(it.ids) {
		return ""
	}
	it.next++
	return it.ids[it.next-1]
}

func (it *lentIterator) Lent() bool { return it.next <= it.lent }

func (it *lentIterator) LookupDone(_ context.Context, asked int, answered, lent bool) {
	*it.lookups = append(*it.lookups, fmt.Sprintf("%d %t %t", asked, answered, answered && lent))
}

// answers returns a function that asks sessions, and the ids that it asked.
func answers(errs map[string]error) (ask func(context.Context, string, Caller) error, asked *[]string) {
	asked = &[]string{}
	return func(_ context.Context, id string, _ Caller) error {
		*asked = append(*asked, id)
		return errs[id]
	}, asked
}

func TestAnyOrder(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	_, ids := connect(t, sm, 3)
	var lookups []string
	for lent := range 4 {
		for answering := range 3 {
			errs := map[string]error{}
			for _, id := range ids[:answering] {
				errs[id] = errors.WithStack(errNotHere)
			}
			ask, asked := answers(errs)
			lookups = nil
			require.NoError(t, sm.Any(t.Context(), &lentGroup{ids, lent, &lookups}, ask))
			require.Equal(t, ids[:answering+1], *asked)
			if lent == 0 {
				require.Empty(t, lookups, "ordinary builds pay nothing")
			} else {
				require.Equal(t, []string{fmt.Sprintf("%d true %t", answering+1, answering < lent)}, lookups)
			}
		}
	}
}

// TestAnyNotLent uses groups to which nothing is lent: Any returns the error of the
// last session unchanged.
func TestAnyNotLent(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	_, ids := connect(t, sm, 2)
	ask, _ := answers(map[string]error{ids[0]: errors.New("first"), ids[1]: errors.WithStack(errNotHere)})
	var lookups []string
	for _, g := range []Group{NewGroup(ids...), &lentGroup{ids, 0, &lookups}} {
		require.EqualError(t, sm.Any(t.Context(), g, ask), errNotHere.Error())
		require.False(t, IsLent(g))
	}
	require.NoError(t, sm.Any(t.Context(), nil, ask))
	require.ErrorIs(t, sm.Any(t.Context(), NewGroup(), ask), ErrNoActiveSessions)
	require.Empty(t, lookups)
}

func TestAnyErrors(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	_, ids := connect(t, sm, 3)
	refused := grpcerrors.WrapCode(errors.New("refused"), codes.PermissionDenied)
	notHere := errors.Wrap(errNotHere, "secret token")
	for _, tc := range []struct {
		name      string
		errs      []error // the first two are of lent sessions
		want      string
		code      codes.Code
		isNotHere bool
	}{
		{"no session has it", []error{notHere, notHere, notHere}, "secret token: not here (3 builds were asked)", codes.Unknown, true},
		{"a base refuses", []error{refused, notHere, notHere}, "secret token: not here (3 builds were asked)", codes.Unknown, false},
		{"the build refuses", []error{notHere, notHere, refused}, "refused (3 builds were asked)", codes.PermissionDenied, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lookups []string
			ask, _ := answers(map[string]error{ids[0]: tc.errs[0], ids[1]: tc.errs[1], ids[2]: tc.errs[2]})
			err := sm.Any(t.Context(), &lentGroup{ids, 2, &lookups}, ask)
			require.EqualError(t, err, tc.want)
			require.Equal(t, tc.code, grpcerrors.Code(err))
			require.Equal(t, tc.isNotHere, errors.Is(err, errNotHere), "an optional secret is absent only if no session has it")
			require.Equal(t, []string{"3 false false"}, lookups)
		})
	}
	ask, _ := answers(map[string]error{ids[0]: refused})
	require.Same(t, refused, sm.Any(t.Context(), &lentGroup{ids[:1], 1, &[]string{}}, ask), "the error of a single session is returned unchanged")
}

// TestAskedShown compares what a client is shown of an error, that was passed on by
// gRPC, with and without the number of builds that were asked. An error is shown with
// what the daemon added to it, or without, depending on where its status comes from.
func TestAskedShown(t *testing.T) {
	t.Parallel()
	denied := status.Error(codes.Unauthenticated, "denied")
	for name, err := range map[string]error{
		"no status":           errors.New("denied"),
		"a code":              grpcerrors.WrapCode(errors.New("denied"), codes.PermissionDenied),
		"a status":            denied,
		"a client's":          grpcerrors.FromGRPC(denied),
		"a client's, wrapped": errors.Wrap(grpcerrors.FromGRPC(denied), "failed to authorize"),
		"a client's, details": grpcerrors.FromGRPC(grpcerrors.ToGRPC(t.Context(), grpcerrors.WrapCode(errors.New("denied"), codes.NotFound))),
		"several":             stderrors.Join(errors.New("first"), denied),
	} {
		t.Run(name, func(t *testing.T) {
			shown := func(err error) *status.Status {
				return status.Convert(grpcerrors.ToGRPC(t.Context(), errors.Wrap(err, "failed to load cache key")))
			}
			asked := askedError{err, 2}
			for _, asked := range []error{&asked, &sessionsError{asked, []error{err, err}}} {
				require.Equal(t, shown(err).Message()+" (2 builds were asked)", shown(asked).Message())
				require.Equal(t, shown(err).Code(), shown(asked).Code())
			}
		})
	}
}

// TestAnyBaseGoes closes a lent session while it is asked. Any behaves as if the
// session had not been lent.
func TestAnyBaseGoes(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	sessions, ids := connect(t, sm, 2)
	err = sm.Any(t.Context(), &lentGroup{ids, 1, &[]string{}}, func(ctx context.Context, id string, _ Caller) error {
		if id == ids[0] {
			require.NoError(t, sessions[0].Close())
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return errNotHere
	})
	require.Same(t, errNotHere, err)
}

// TestAnyConnectionBreaks breaks the connection of a lent session while it is asked.
// The request fails before the manager knows that the session is closed.
func TestAnyConnectionBreaks(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64() //nolint:gosec // not for secrets
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	sm, err := NewManager()
	require.NoError(t, err)
	_, ids := connect(t, sm, 1)
	var breaks sync.WaitGroup
	defer breaks.Wait()
	for range 1000 {
		s, err := NewSession(t.Context(), "")
		require.NoError(t, err)
		conns := make(chan net.Conn, 1)
		breaks.Go(func() {
			s.Run(t.Context(), func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
				conn, err := testutil.TestStream(testutil.Handler(sm.HandleConn))(ctx, proto, meta)
				conns <- conn
				return conn, err
			})
		})
		_, err = sm.Get(t.Context(), s.ID(), false)
		require.NoError(t, err)
		delay := time.Duration(rnd.IntN(int(time.Millisecond)))
		err = sm.Any(t.Context(), &lentGroup{[]string{s.ID(), ids[0]}, 1, &[]string{}}, func(ctx context.Context, id string, c Caller) error {
			if id == ids[0] {
				return errNotHere
			}
			breaks.Go(func() {
				time.Sleep(delay)
				(<-conns).Close()
			})
			for {
				if _, err := grpc_health_v1.NewHealthClient(c.Conn()).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
					return err
				}
			}
		})
		require.Same(t, errNotHere, err)
		require.NoError(t, s.Close())
	}
}

func TestAnyCanceled(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	_, ids := connect(t, sm, 2)
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	err = sm.Any(ctx, &lentGroup{ids, 1, &[]string{}}, func(context.Context, string, Caller) error {
		asked++
		cancel(errors.WithStack(context.Canceled))
		return errNotHere
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, asked)
}
