package solver

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/util/bklog"
	"github.com/pkg/errors"
)

// holdTimeout is how long a discarded job waits for what it evaluates. Ops that
// are canceled stop in less; one that does not must not be in the way of other
// builds of its vertex.
const holdTimeout = time.Minute

// leftTimeout is how long after the end of a job what is left of it is released.
// Who has got it meanwhile releases it in less.
const leftTimeout = 10 * time.Second

// jobBuilds counts what a job is evaluating.
type jobBuilds struct {
	ctx    context.Context // canceled when the job ends
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	n    int
	late *time.Timer // releases the job if the last build does not
	left []func()    // called some time after the job has been released
}

// Evaluate is Build for a job that may be discarded meanwhile, as by a client
// that goes. It is canceled then, but that takes until the ops have stopped, and
// they may have succeeded. The vertices of the job are released when Evaluate
// has returned, or after a minute: with them gone, nobody would release the
// results, and edges that are at work would not find their inputs.
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errors.WithStack(context.Canceled))
	defer context.AfterFunc(builds.ctx, func() { cancel(context.Cause(builds.ctx)) })()

	res, err := j.Build(ctx, e)
	if !builds.hasEnded() {
		return res, err
	}
	if err == nil {
		res.Release(context.WithoutCancel(ctx))
	}
	return nil, errJobDiscarded(j, "build "+e.Vertex.Name())
}

// start reports if the job can build something, which is to be followed by
// done.
func (b *jobBuilds) start() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasEnded() {
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
	if !b.hasEnded() || b.n > 0 {
		return false
	}
	if b.late != nil {
		b.late.Stop()
	}
	return true
}

// end refuses further builds and cancels those that run. It reports if there
// are none, otherwise it calls late if they are not done in time.
func (b *jobBuilds) end(late func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n > 0 && !b.hasEnded() {
		b.late = time.AfterFunc(holdTimeout, late)
	}
	b.cancel(errors.WithStack(context.Canceled))
	return b.n == 0
}

func (b *jobBuilds) hasEnded() bool {
	return b.ctx.Err() != nil
}

// ReleaseLeft has f called ten seconds after the job has ended and evaluates
// nothing any more. It is for results that go to somebody who may be gone when
// they arrive: f releases those that have not been released.
func (j *Job) ReleaseLeft(f func()) {
	b := &j.ownership().builds
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasEnded() {
		time.AfterFunc(leftTimeout, f)
		return
	}
	b.left = append(b.left, f)
}

// releaseLeft calls what was given to ReleaseLeft, if there is anything.
func (b *jobBuilds) releaseLeft() {
	b.mu.Lock()
	left := b.left
	b.left = nil
	b.mu.Unlock()
	if len(left) > 0 {
		time.AfterFunc(leftTimeout, func() {
			for _, f := range left {
				f()
			}
		})
	}
}

// Discard ends the job: what it registered is released at once, what it is
// building when that has ended. Nothing can be registered or evaluated with it
// afterwards.
func (j *Job) Discard() error {
	jl := j.list
	orphans := jl.owners.remove(j)
	defer func() {
		jl.releaseOrphans(orphans)
		jl.sweepFailures()
	}()
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
		jl := j.list
		jl.spreadFailures()
		err = j.discard()
		jl.sweepFailures()
		j.ownership().builds.releaseLeft()
	})
	return err
}
