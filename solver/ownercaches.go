package solver

import (
	"context"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Cache is that of the state. What is looked for in it is looked for in the
// cache imports of the owners as well.
func (op *observedOp) Cache() CacheManager {
	return &observedCache{CacheManager: op.activeOp.Cache(), op: op}
}

// observedCache notes errors that stay with the edge which asked.
type observedCache struct {
	CacheManager
	op *observedOp
}

func (c *observedCache) Query(inp []CacheKeyWithSelector, inputIndex Index, dgst digest.Digest, outputIndex Index) ([]*CacheKey, error) {
	cm := c.CacheManager
	if lent := c.op.st.ownerCaches(); len(lent) > 0 {
		cms := []CacheManager{cm}
		for _, l := range lent {
			cms = append(cms, &lentCache{CacheManager: l, st: c.op.st})
		}
		cm = NewCombinedCacheManager(cms, cm)
	}
	keys, err := cm.Query(inp, inputIndex, dgst, outputIndex)
	c.op.observe(context.Background(), err)
	return keys, err
}

func (c *observedCache) Save(key *CacheKey, s Result, createdAt time.Time) (*ExportableCacheKey, error) {
	exp, err := c.CacheManager.Save(key, s, createdAt)
	c.op.observe(context.Background(), err)
	return exp, err
}

// lentCache is a cache import of an owner. With the first hit it becomes one of
// the state, so that what was found can be loaded when the owner has gone.
type lentCache struct {
	CacheManager
	st *state
}

func (c *lentCache) Query(inp []CacheKeyWithSelector, inputIndex Index, dgst digest.Digest, outputIndex Index) ([]*CacheKey, error) {
	keys, err := c.CacheManager.Query(inp, inputIndex, dgst, outputIndex)
	if len(keys) > 0 {
		c.st.adoptCache(c.CacheManager)
	}
	return keys, err
}

// adoptCache makes cm a cache import of the state.
func (s *state) adoptCache(cm CacheManager) {
	s.solver.mu.RLock() // the imports of a state are copied with this lock alone
	defer s.solver.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.cache[cm.ID()]; !ok {
		s.cache[cm.ID()] = cm
	}
}

// ownerCaches returns the cache imports that only owners provide, in the order
// of registration.
func (s *state) ownerCaches() (out []CacheManager) {
	for _, reg := range s.solver.owners.lookup(s.origDigest) {
		for _, cm := range reg.caches {
			if !slices.ContainsFunc(out, func(c CacheManager) bool { return c.ID() == cm.ID() }) {
				out = append(out, cm)
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.DeleteFunc(out, func(cm CacheManager) bool {
		_, ok := s.cache[cm.ID()]
		return ok || cm.ID() == s.mainCache.ID()
	})
}
