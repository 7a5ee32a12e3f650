package ops

import "golang.org/x/sync/semaphore"

// SpareSlot reports if the op can take a slot and leave another one free.
func (e *ExecOp) SpareSlot() bool { return spareSlot(e.parallelism) }

// SpareSlot reports if the op can take a slot and leave another one free.
func (s *SourceOp) SpareSlot() bool { return spareSlot(s.parallelism) }

// SpareSlot reports if the op can take a slot and leave another one free.
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
