package cache

import (
	"context"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// TestNewCanceled cancels a ref whose parent must be finalized first. After the
// parent is released, no record is in use.
func TestNewCanceled(t *testing.T) {
	t.Parallel()
	ctx, cm := newTestManager(t)
	parent := newCommitted(ctx, t, cm)

	canceled, cancel := context.WithCancelCause(ctx)
	cancel(errors.WithStack(context.Canceled))
	_, err := cm.New(canceled, parent, nil)
	require.ErrorIs(t, err, context.Canceled)

	child, err := cm.New(ctx, parent, nil)
	require.NoError(t, err, "the parent can still be used")
	require.NoError(t, child.Release(ctx))
	require.NoError(t, parent.Release(ctx))
	require.Eventually(t, func() bool {
		du, err := cm.DiskUsage(ctx, client.DiskUsageInfo{})
		return err == nil && len(du) == 1 && !du[0].InUse
	}, 10*time.Second, 10*time.Millisecond, "a record is still in use")
}
