package cache

import "github.com/moby/buildkit/util/graphload"

// gone tells if the record is being removed, as isDead does, but from a state
// that Finalize has left behind. That lets the writable half of a record die
// before it lets go of it, under the lock of the record and not of the manager:
// whoever looks in between takes a record that is about to be complete for a
// dead one. Builds that share results, and load one while another exports it,
// look at that moment.
//
// Callers hold the lock of the manager, which is taken before those of records.
func (cr *cacheRecord) gone() bool {
	if !graphload.Enabled() {
		return cr.isDead()
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	return cr.isDead()
}
