package solver

import (
	"context"
	"sync"
)

// jobBuilds counts what a job is building.
type jobBuilds struct {
	mu    sync.Mutex
	n     int
	ended bool
}

// Evaluate is Build for a job that may be discarded meanwhile: its vertices are
// released when Evaluate has returned. A client that goes cancels what it
// evaluates, but that takes until the ops have stopped, and they may have
// succeeded. With the vertices gone, nobody would release their results.
//
// Returns ErrJobDiscarded when the job has already ended.
func (j *Job) Evaluate(ctx context.Context, e Edge) (CachedResultWithProvenance, error) {
	builds := &j.ownership().builds
	if !builds.start() {
		return nil, errJobDiscarded(j, "build "+e.Vertex.Name())
	}
	defer func() {
		if builds.done() {
			j.release()
		}
	}()
	return j.Build(ctx, e)
}

// start reports if the job can build something, which is to be followed by
// done.
func (b *jobBuilds) start() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return false
	}
	b.n++
	return true
}

// done reports if the job ended meanwhile and builds nothing any more.
func (b *jobBuilds) done() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n--
	return b.ended && b.n == 0
}

// end refuses further builds. It reports if there are none.
func (b *jobBuilds) end() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.n == 0
}
