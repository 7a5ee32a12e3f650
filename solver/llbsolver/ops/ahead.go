package ops

import "golang.org/x/sync/semaphore"

// SpareSlot reports if the op can have a slot and leave one to another.
func (e *ExecOp) SpareSlot() bool { return spareSlot(e.parallelism) }

// SpareSlot reports if the op can have a slot and leave one to another.
func (s *SourceOp) SpareSlot() bool { return spareSlot(s.parallelism) }

// SpareSlot reports if the op can have a slot and leave one to another.
func (f *fileOp) SpareSlot() bool { return spareSlot(f.parallelism) }

// spareSlot reports if two slots are free and no op waits for one.
func spareSlot(parallelism *semaphore.Weighted) bool {
	if parallelism == nil {
		return true
	}
	if !parallelism.TryAcquire(2) {
		return false
	}
	parallelism.Release(2)
	return true
}
