package cache

import (
	"context"

	"github.com/moby/buildkit/util/graphload"
)

// releaseUnready releases the parent of a new ref that could not be made ready,
// because its build has been canceled or its content cannot be fetched. New
// does so for all that fails afterwards, when it has the id of the snapshot.
// The parent would stay in use for as long as the daemon runs, with all that is
// below it.
func releaseUnready(ctx context.Context, parent **immutableRef, snapshotID *string, err *error) {
	if graphload.Enabled() && *err != nil && *parent != nil && *snapshotID == "" {
		(*parent).Release(context.WithoutCancel(ctx))
	}
}
