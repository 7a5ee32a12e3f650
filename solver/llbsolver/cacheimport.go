package llbsolver

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
)

// deferredCacheManager defers a cache import until a build needs it: until the
// definition that it belongs to is built, or until a chained build looks up a vertex
// of that definition.
type deferredCacheManager struct {
	id    string
	start func() solver.CacheManager
}

// deferCacheImport returns a cache manager that calls fn to import the cache when it
// is first used or started. If the build has ended by then, the cache manager finds
// nothing. fn runs in the background; methods wait for it.
func (b *llbBridge) deferCacheImport(id string, fn func() (solver.CacheManager, error)) solver.CacheManager {
	j, ok := b.job()
	if !ok {
		return newLazyCacheManager(id, fn)
	}
	return &deferredCacheManager{id: id, start: sync.OnceValue(func() solver.CacheManager {
		return newLazyCacheManager(id, func() (solver.CacheManager, error) {
			if err := j.Err(); err != nil {
				return nil, err
			}
			return fn()
		})
	})}
}

func (cm *deferredCacheManager) ID() string {
	return cm.id
}

func (cm *deferredCacheManager) Query(inp []solver.CacheKeyWithSelector, inputIndex solver.Index, dgst digest.Digest, outputIndex solver.Index) ([]*solver.CacheKey, error) {
	return cm.start().Query(inp, inputIndex, dgst, outputIndex)
}

func (cm *deferredCacheManager) Records(ctx context.Context, ck *solver.CacheKey) ([]*solver.CacheRecord, error) {
	return cm.start().Records(ctx, ck)
}

func (cm *deferredCacheManager) Load(ctx context.Context, rec *solver.CacheRecord) (solver.Result, error) {
	return cm.start().Load(ctx, rec)
}

func (cm *deferredCacheManager) Save(key *solver.CacheKey, s solver.Result, createdAt time.Time) (*solver.ExportableCacheKey, error) {
	return cm.start().Save(key, s, createdAt)
}

func (cm *deferredCacheManager) ReleaseUnreferenced(ctx context.Context) error {
	return cm.start().ReleaseUnreferenced(ctx)
}
