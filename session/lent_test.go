package session

import (
	"context"
	"testing"

	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOneByOne(t *testing.T) {
	t.Parallel()
	errRefused := errors.New("refused")
	own := NewGroup("child")
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
			err := OneByOne(t.Context(), tc.lent, own, func(g Group) error {
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
				require.Equal(t, "denied (2 builds were asked)", st.Message())
			}
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	attempts := 0
	err := OneByOne(ctx, []string{"a"}, own, func(Group) error {
		attempts++
		cancel(errors.WithStack(context.Canceled))
		return errRefused
	})
	require.Same(t, errRefused, err)
	require.Equal(t, 1, attempts, "nothing is tried for a build that was canceled")
}
