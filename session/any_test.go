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
	"google.golang.org/grpc/codes"
)

var errNotHere = errors.New("not here")

// connect runs n sessions and returns their ids.
func connect(t *testing.T, sm *Manager, n int) (ids []string) {
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
			require.NoError(t, s.Close())
			<-done
		})
		ids = append(ids, s.ID())
	}
	return ids
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
