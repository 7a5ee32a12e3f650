package solver

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/util/bklog"
)

// holdTimeout is how long a discarded job waits for what it evaluates. Ops that
// are canceled stop in less; one that does not must not be in the way of other
// builds of its vertex.
const holdTimeout = time.Minute

// jobBuilds counts what a job is evaluating.
type jobBuilds struct {
	mu    sync.Mutex
	n     int
	ended bool
	late  *time.Timer // releases the job if the last build does not
}

// Evaluate is Build for a job that may be discarded meanwhile: its vertices are
// released when Evaluate has returned, or after a minute. A client that goes
// cancels what it evaluates, but that takes until the ops have stopped, and they
// may have succeeded. With the vertices gone, nobody would release their
// results.
//
// Returns ErrJobDiscarded when the job has ended, also if that was meanwhile.
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
	res, err := j.Build(ctx, e)
	if err == nil && builds.hasEnded() {
		res.Release(context.WithoutCancel(ctx))
		return nil, errJobDiscarded(j, "build "+e.Vertex.Name())
	}
	return res, err
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
	if !b.ended || b.n > 0 {
		return false
	}
	if b.late != nil {
		b.late.Stop()
	}
	return true
}

// end refuses further builds. It reports if there are none, otherwise it calls
// late if they are not done in time.
func (b *jobBuilds) end(late func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n > 0 && !b.ended {
		b.late = time.AfterFunc(holdTimeout, late)
	}
	b.ended = true
	return b.n == 0
}

func (b *jobBuilds) hasEnded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// Discard ends the job: what it registered is released at once, what it is
// building when that has ended. Nothing can be registered or evaluated with it
// afterwards.
func (j *Job) Discard() error {
	orphans := j.list.owners.remove(j)
	defer j.list.releaseOrphans(orphans)
	late := func() {
		bklog.G(context.TODO()).Warnf("job %s has ended but builds on: it is released after %s", j.id, holdTimeout)
		j.release()
	}
	if !j.ownership().builds.end(late) {
		return nil
	}
	return j.release()
}

// release releases the vertices that the job was building.
func (j *Job) release() (err error) {
	j.ownership().released.Do(func() {
		j.list.spreadFailures(j)
		err = j.discard()
	})
	return err
}
