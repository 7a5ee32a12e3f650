package session

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/moby/buildkit/session/testutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
)

var errNotHere = errors.New("not here")

// connect runs n sessions and returns their ids.
func connect(t *testing.T, sm *Manager, n int) (ids []string) {
	for range n {
		s, err := NewSession(t.Context(), "")
		require.NoError(t, err)
		run(t, sm, s)
		ids = append(ids, s.ID())
	}
	return ids
}

// run runs a session until the test ends.
func run(t *testing.T, sm *Manager, s *Session) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.WithoutCancel(t.Context()), Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn))))
	}()
	_, err := sm.Get(t.Context(), s.ID(), false)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		<-done
	})
}

func TestAnyOrder(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 3)

	var asked []string
	err = sm.Any(t.Context(), NewGroup(ids...), func(_ context.Context, id string, _ Caller) error {
		asked = append(asked, id)
		if id == ids[1] {
			return nil
		}
		return errors.WithStack(errNotHere)
	})
	require.NoError(t, err)
	require.Equal(t, ids[:2], asked)
}

// observed is a group that notes the lookups in it.
type observed struct {
	Group
	lookups *[]string
}

type observedTestIterator struct {
	Iterator
	lookups *[]string
}

func (o *observed) SessionIterator() Iterator {
	return &observedTestIterator{Iterator: o.Group.SessionIterator(), lookups: o.lookups}
}

func (o *observedTestIterator) LookupDone(_ context.Context, asked int, answered string) {
	*o.lookups = append(*o.lookups, fmt.Sprintf("%d %s", asked, answered))
}

func TestAnyObserver(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 3)

	var lookups []string
	g := &observed{Group: NewGroup(ids...), lookups: &lookups}
	answer := func(answering string) func(context.Context, string, Caller) error {
		return func(_ context.Context, id string, _ Caller) error {
			if id != answering {
				return errors.WithStack(errNotHere)
			}
			return nil
		}
	}
	require.NoError(t, sm.Any(t.Context(), g, answer(ids[1])))
	require.ErrorIs(t, sm.Any(t.Context(), g, answer("")), errNotHere)
	require.NoError(t, sm.Any(t.Context(), Subgroup(g, ids[2]), answer(ids[2])))
	require.NoError(t, sm.Any(t.Context(), Subgroup(NewGroup(ids...), ids[2]), answer(ids[2])), "nobody observes")
	require.Equal(t, []string{"2 " + ids[1], "3 ", "1 " + ids[2]}, lookups)
	require.Equal(t, ids[2:], AllSessionIDs(Subgroup(g, ids[2])))
}

func TestAnyNoSession(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	f := func(context.Context, string, Caller) error { return nil }

	require.NoError(t, sm.Any(t.Context(), nil, f))
	err = sm.Any(t.Context(), NewGroup(), f)
	require.ErrorIs(t, err, ErrNoActiveSessions)
	require.True(t, IsUnreachable(err))
}

func TestAnyErrors(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 2)
	answers := map[string]error{
		ids[0]: errors.Wrap(errNotHere, "secret token"),
		ids[1]: grpcerrors.WrapCode(errors.New("refused"), codes.PermissionDenied),
	}
	ask := func(_ context.Context, id string, _ Caller) error { return answers[id] }

	err = sm.Any(t.Context(), NewGroup(ids[0]), ask)
	require.EqualError(t, err, "secret token: not here", "a single session has the last word, as it is")
	require.False(t, IsUnreachable(err))

	err = sm.Any(t.Context(), NewGroup(ids...), ask)
	require.EqualError(t, err, "refused (2 builds were asked, none offered it)")
	require.Equal(t, codes.PermissionDenied, grpcerrors.Code(err))
	require.ErrorIs(t, err, errNotHere, "the errors of all sessions count")
	require.False(t, IsUnreachable(err))
}

func TestAnyUnreachable(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 2)

	start := time.Now()
	err = sm.Any(t.Context(), NewGroup("gone1", ids[0], "gone2", "gone3"), func(context.Context, string, Caller) error {
		return errors.Wrap(errNotHere, "secret token")
	})
	require.EqualError(t, err, "secret token: not here (4 builds were asked, none offered it, 3 could not be reached)")
	require.ErrorIs(t, err, errNotHere)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, IsUnreachable(err), "one has answered")
	require.Less(t, time.Since(start), 2*connectTimeout, "absent sessions are waited for together")

	start = time.Now()
	err = sm.Any(t.Context(), NewGroup("gone1", "gone2", ids[1]), func(_ context.Context, id string, _ Caller) error {
		return nil
	})
	require.NoError(t, err, "a connected session is asked when the time for absent ones is up")
	require.Less(t, time.Since(start), 2*connectTimeout)

	err = sm.Any(t.Context(), NewGroup("gone1"), func(context.Context, string, Caller) error { return nil })
	require.ErrorContains(t, err, "no active session for gone1")
	require.True(t, IsUnreachable(err))
}

func TestAnyCanceled(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 2)

	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	err = sm.Any(ctx, NewGroup(ids...), func(context.Context, string, Caller) error {
		asked++
		cancel(errors.WithStack(context.Canceled))
		return errors.WithStack(errNotHere)
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, asked, "nobody else is asked for a build that was canceled")
}

// TestAnySessionCloses has a session that is connected but does not answer.
// The request ends when the session is closed, as its health check would do,
// and the next session serves it.
func TestAnySessionCloses(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	ids := connect(t, sm, 2)

	err = sm.Any(t.Context(), NewGroup(ids...), func(ctx context.Context, id string, c Caller) error {
		if id == ids[1] {
			return nil
		}
		c.(*client).cancelCtx(errors.New("session healthcheck failed fatally"))
		<-ctx.Done()
		return errors.WithStack(context.Cause(ctx))
	})
	require.NoError(t, err)
}

// TestAnySessionLost asks sessions for a secret and loses one of them during
// the call: the answer of the other one is what counts, in either order.
func TestAnySessionLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*Session, *client){
		"connection cut":    func(s *Session, _ *client) { s.conn.Close() },
		"client ended":      func(s *Session, _ *client) { s.cancelCtx(errors.WithStack(context.Canceled)) },
		"closed by manager": func(_ *Session, c *client) { c.cancelCtx(errors.New("session healthcheck failed fatally")) },
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/first=%t", name, first), func(t *testing.T) {
				t.Parallel()
				sm, err := NewManager()
				require.NoError(t, err)
				loser := offering(t, sm, func(ctx context.Context, s *Session) error {
					c, err := sm.Get(ctx, s.ID(), false)
					require.NoError(t, err)
					lose(s, c.(*client))
					<-ctx.Done()
					return errors.WithStack(context.Cause(ctx))
				})
				other := offering(t, sm, func(context.Context, *Session) error {
					return grpcerrors.WrapCode(errNotHere, codes.NotFound)
				})
				ids := []string{other, loser}
				if first {
					ids = []string{loser, other}
				}
				err = sm.Any(t.Context(), NewGroup(ids...), call)
				require.EqualError(t, err, "NotFound: not here (2 builds were asked, none offered it, 1 could not be reached)")
				require.Equal(t, codes.NotFound, grpcerrors.Code(err))
				require.False(t, IsUnreachable(err))
			})
		}
	}

	t.Run("reason", func(t *testing.T) {
		t.Parallel()
		sm, err := NewManager()
		require.NoError(t, err)
		ids := connect(t, sm, 2)
		err = sm.Any(t.Context(), NewGroup(ids...), func(ctx context.Context, id string, c Caller) error {
			if id == ids[0] {
				return errors.WithStack(errNotHere)
			}
			c.(*client).cancelCtx(errors.New("session healthcheck failed fatally"))
			<-ctx.Done()
			return errors.Wrap(context.Cause(ctx), "failed to read")
		})
		require.EqualError(t, err, "not here (2 builds were asked, none offered it, 1 could not be reached)")
	})

	t.Run("the only one", func(t *testing.T) {
		t.Parallel()
		sm, err := NewManager()
		require.NoError(t, err)
		id := offering(t, sm, func(ctx context.Context, s *Session) error {
			s.conn.Close()
			<-ctx.Done()
			return errors.WithStack(context.Cause(ctx))
		})
		err = sm.Any(t.Context(), NewGroup(id), call)
		require.Error(t, err)
		require.True(t, IsUnreachable(err), "%+v", err)
	})

	t.Run("a session that says so", func(t *testing.T) {
		t.Parallel()
		sm, err := NewManager()
		require.NoError(t, err)
		id := offering(t, sm, func(context.Context, *Session) error {
			return grpcerrors.WrapCode(errors.New("client side tokens disabled"), codes.Unavailable)
		})
		err = sm.Any(t.Context(), NewGroup(id), call)
		require.ErrorContains(t, err, "client side tokens disabled")
		require.Equal(t, codes.Unavailable, grpcerrors.Code(err))
		require.False(t, IsUnreachable(err))
	})
}

const testMethod = "/graphload.test/Ask"

// call asks a session for testMethod.
func call(ctx context.Context, _ string, c Caller) error {
	return c.Conn().Invoke(ctx, testMethod, &emptypb.Empty{}, &emptypb.Empty{})
}

// offering runs a session that serves testMethod and returns its id.
func offering(t *testing.T, sm *Manager, answer func(context.Context, *Session) error) string {
	s, err := NewSession(t.Context(), "")
	require.NoError(t, err)
	s.grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "graphload.test",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Ask",
			Handler: func(_ any, ctx context.Context, _ func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return &emptypb.Empty{}, grpcerrors.ToGRPC(ctx, answer(ctx, s))
			},
		}},
	}, nil)
	run(t, sm, s)
	return s.ID()
}
