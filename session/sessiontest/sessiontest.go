// Package sessiontest connects sessions of clients in tests.
package sessiontest

import (
	"context"
	"testing"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/testutil"
	"github.com/stretchr/testify/require"
)

// Connect connects a session with the given attachables until the end of the test,
// and returns its id.
func Connect(t *testing.T, sm *session.Manager, attach ...session.Attachable) string {
	s, err := session.NewSession(t.Context(), "")
	require.NoError(t, err)
	for _, a := range attach {
		s.Allow(a)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.WithoutCancel(t.Context()), session.Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn))))
	}()
	_, err = sm.Get(t.Context(), s.ID(), false)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		<-done
	})
	return s.ID()
}
