package cache

import (
	"context"

	"github.com/moby/buildkit/util/graphload"
)

// releaseUnready releases the parent of a new ref that could not be made ready,
// because its build was canceled or its content cannot be fetched. New itself
// releases the parent if a later call fails, when it has the id of the snapshot.
// Without the release, the parent and its ancestors would stay in use until the
// daemon ends.
func releaseUnready(ctx context.Context, parent **immutableRef, snapshotID *string, err *error) {
	if graphload.Enabled() && *err != nil && *parent != nil && *snapshotID == "" {
		(*parent).Release(context.WithoutCancel(ctx))
	}
}
