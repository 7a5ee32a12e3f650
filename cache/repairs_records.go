package cache

import "github.com/moby/buildkit/util/graphload"

// gone reports if the record is being removed, as isDead does, but waits for a
// Finalize that is running. Finalize marks the writable half of a record as dead before it
// drops it, under the lock of the record and not of the manager. A caller that
// looks in between mistakes a record that is about to be complete for a dead one.
// This happens if builds share results, and one loads a result while another one
// exports it.
//
// Callers hold the lock of the manager, which is taken before the locks of records.
func (cr *cacheRecord) gone() bool {
	if !graphload.Enabled() {
		return cr.isDead()
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	return cr.isDead()
}
