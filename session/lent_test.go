package session

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOneByOne(t *testing.T) {
	t.Parallel()
	errRefused := errors.New("refused")
	own := func() Group { return NewGroup("child") }
	for _, tc := range []struct {
		name string
		lent []string
		errs map[string]error
		want []string // sessions
		err  error
		text string
		code codes.Code
	}{
		{name: "nothing is lent", errs: map[string]error{"child": errRefused}, want: []string{"child"}, err: errRefused, text: "refused", code: codes.Unknown},
		{name: "the first is accepted", lent: []string{"a", "b"}, want: []string{"a"}},
		{name: "another is accepted", lent: []string{"a", "b"}, errs: map[string]error{"a": errRefused}, want: []string{"a", "b"}},
		{name: "all are refused", lent: []string{"a"}, errs: map[string]error{"a": errors.New("old"), "child": errRefused}, want: []string{"a", "child"}, err: errRefused, text: "refused (2 builds were asked)", code: codes.Unknown},
		{
			name: "a client's error", lent: []string{"a"}, want: []string{"a", "child"},
			errs: map[string]error{"a": errRefused, "child": errors.Wrap(status.Error(codes.Unauthenticated, "denied"), "failed to authorize")},
			text: "failed to authorize: rpc error: code = Unauthenticated desc = denied (2 builds were asked)", code: codes.Unauthenticated,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []string
			err := OneByOne(t.Context(), func() []string { return slices.Clone(tc.lent) }, own, func(g Group) error {
				ids := AllSessionIDs(g)
				require.Len(t, ids, 1)
				asked = append(asked, ids[0])
				return tc.errs[ids[0]]
			})
			require.Equal(t, tc.want, asked)
			if tc.text == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tc.text)
			require.Equal(t, tc.code, grpcerrors.Code(err))
			if tc.err != nil {
				require.ErrorIs(t, err, tc.err)
			}
			if st, ok := grpcerrors.AsGRPCStatus(err); ok {
				require.Equal(t, tc.code, st.Code())
				require.Regexp(t, `^(denied|refused) \(2 builds were asked\)$`, st.Message())
			}
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	attempts := 0
	err := OneByOne(ctx, func() []string { return []string{"a"} }, own, func(Group) error {
		attempts++
		cancel(errors.WithStack(context.Canceled))
		return errRefused
	})
	require.Same(t, errRefused, err)
	require.Equal(t, 1, attempts, "no session is tried for a canceled build")
}

// TestLentSessionIsGone closes a session after it was listed. Any does not wait for
// it, alone or with others. A session that is still lent may yet connect.
func TestLentSessionIsGone(t *testing.T) {
	t.Parallel()
	sm, err := NewManager()
	require.NoError(t, err)
	sessions, ids := connect(t, sm, 2)
	var lookups []string
	g := &lentGroup{ids: ids, lent: 1, lookups: &lookups}
	lent := func() []string { ids, _ := SplitLent(g); return ids }
	require.False(t, sm.isGone(t.Context(), ids[0], g))
	require.False(t, sm.isGone(t.Context(), "not connected yet", &oneLent{"not connected yet", func() []string { return []string{"not connected yet"} }, true}))

	one := &oneLent{id: ids[0], lent: lent}
	ask, asked := answers(map[string]error{})
	require.NoError(t, sm.Any(t.Context(), one, ask))
	require.Equal(t, ids[:1], *asked)

	require.NoError(t, sessions[0].Close())
	require.Eventually(t, func() bool {
		c, err := sm.Get(t.Context(), ids[0], true)
		return err == nil && (c == nil || IsClosed(c))
	}, time.Minute, time.Millisecond)
	g.ids, g.lent = ids[1:], 0 // the solver has noticed by then
	require.True(t, sm.isGone(t.Context(), ids[0], g))
	require.True(t, sm.isGone(t.Context(), ids[0], one))
	require.ErrorIs(t, sm.Any(t.Context(), one, ask), ErrNoActiveSessions)
	require.Equal(t, ids[:1], *asked, "a closed session is not asked")
}
