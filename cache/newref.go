package cache

import (
	"context"

	"github.com/moby/buildkit/session"
)

// New returns a writable ref on top of s, which may be nil. Making it clones s,
// and a clone would stay in use for as long as the daemon runs when s cannot be
// finalized or extracted any more, because the build has been canceled. So that
// is done first, with the ref of the caller; it is not done again with a clone.
func (cm *cacheManager) New(ctx context.Context, s ImmutableRef, sess session.Group, opts ...RefOption) (MutableRef, error) {
	if parent, ok := s.(*immutableRef); ok {
		if err := parent.Finalize(ctx); err != nil {
			return nil, err
		}
		if err := parent.Extract(ctx, sess); err != nil {
			return nil, err
		}
	}
	return cm.newRef(ctx, s, sess, opts...)
}
