package solver

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
)

// holdTimeout is how long a discarded job waits for what it evaluates. Ops that
// are canceled stop in less; one that does not must not be in the way of other
// builds of its vertex.
const holdTimeout = 15 * time.Second

// leftTimeout is how long after the end of a job what is left of it is released.
// Who has got it meanwhile releases it in less.
const leftTimeout = 10 * time.Second

// jobBuilds is what a job is evaluating.
type jobBuilds struct {
	ctx    context.Context // canceled when the job ends
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	running map[*Edge]struct{}
	late    *time.Timer // releases the job if the last build does not
	left    []leftover  // released some time after the job
}

// leftover is something that is released unless it has been.
type leftover struct {
	released func() bool
	release  func()
}

// Evaluate is Build for a job that may be discarded meanwhile, as by a client
// that goes. It is canceled then, but that takes until the ops have stopped, and
// they may have succeeded. The vertices of the job are released when Evaluate
// has returned, or after 15 seconds: with them gone, nobody would release the
// results, and edges that are at work would not find their inputs.
//
// Returns ErrJobDiscarded when the job has ended, also if that was meanwhile.
func (j *Job) Evaluate(ctx context.Context, e Edge) (CachedResultWithProvenance, error) {
	builds := &j.ownership().builds
	if !builds.start(&e) {
		return nil, errJobDiscarded(j, "build "+e.Vertex.Name())
	}
	defer func() {
		if builds.done(&e) {
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
func (b *jobBuilds) start(e *Edge) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasEnded() {
		return false
	}
	if b.running == nil {
		b.running = map[*Edge]struct{}{}
	}
	b.running[e] = struct{}{}
	return true
}

// done reports if the job ended meanwhile and builds nothing any more.
func (b *jobBuilds) done(e *Edge) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, e)
	if !b.hasEnded() || len(b.running) > 0 {
		return false
	}
	if b.late != nil {
		b.late.Stop()
	}
	return true
}

// end refuses further builds, cancels those that run and returns their edges. If
// there are any it calls late when they are not done in time.
func (b *jobBuilds) end(late func()) (running []*Edge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.running) > 0 && !b.hasEnded() {
		b.late = time.AfterFunc(holdTimeout, late)
	}
	b.cancel(errors.WithStack(context.Canceled))
	return slices.Collect(maps.Keys(b.running))
}

func (b *jobBuilds) hasEnded() bool {
	return b.ctx.Err() != nil
}

// ended reports if the job has been discarded. It may still be building.
func (j *Job) ended() bool {
	return j.ownership().builds.hasEnded()
}

// ReleaseLeft has release called ten seconds after the job has been released, or
// from now if it has ended. It is for results that go to somebody who may be gone
// when they arrive: release releases those that have not been released. Both
// functions are forgotten at the end of the job if released reports that then.
func (j *Job) ReleaseLeft(released func() bool, release func()) {
	b := &j.ownership().builds
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasEnded() {
		time.AfterFunc(leftTimeout, release)
		return
	}
	b.left = append(b.left, leftover{released, release})
}

// releaseLeft releases what was given to ReleaseLeft and is still there.
func (b *jobBuilds) releaseLeft() {
	b.mu.Lock()
	left := b.left
	b.left = nil
	b.mu.Unlock()
	left = slices.DeleteFunc(left, func(l leftover) bool { return l.released() })
	if len(left) > 0 {
		time.AfterFunc(leftTimeout, func() {
			for _, l := range left {
				l.release()
			}
		})
	}
}

// Discard ends the job: what it registered, and what no running evaluation needs, is
// released at once, the rest when the evaluations have returned or after 15 seconds.
// Nothing can be registered or evaluated with it afterwards.
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
	if running := j.ownership().builds.end(late); len(running) > 0 {
		jl.leave(j, running)
		return nil
	}
	return j.release()
}

// leave takes j out of the states that none of the edges needs. They may have
// failed, and whoever builds them next is not to be given that.
func (jl *Solver) leave(j *Job, edges []*Edge) {
	jl.mu.Lock()
	defer jl.mu.Unlock()
	needed := jl.owners.closure(edges) // no edge is merged meanwhile
	jl.markFailed()
	for key, st := range jl.actives {
		if _, ok := needed[st.origDigest]; ok {
			continue
		}
		st.mu.Lock()
		if _, ok := st.jobs[j]; ok {
			delete(st.jobs, j)
			st.disconnect(j)
			jl.deleteIfUnreferenced(key, st)
		}
		st.mu.Unlock()
	}
}

// disconnect ends the progress of the state for j. The state may be kept for
// long, and it would keep the progress of every job that has ever built it.
func (s *state) disconnect(j *Job) {
	s.allPwMu.Lock()
	defer s.allPwMu.Unlock()
	s.mpw.Delete(j.pw)
	delete(s.allPw, j.pw)
}

// closure returns the vertices of edges with all their ancestors, and those that
// took over any of them.
func (o *ownerIndex) closure(edges []*Edge) map[digest.Digest]struct{} {
	out := map[digest.Digest]struct{}{}
	var queue []digest.Digest
	add := func(dgst digest.Digest) {
		if _, ok := out[dgst]; !ok {
			out[dgst] = struct{}{}
			queue = append(queue, dgst)
		}
	}
	for _, e := range edges {
		for _, v := range withAncestors(nil, e.Vertex) {
			add(v.Digest())
		}
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for i := 0; i < len(queue); i++ {
		for _, target := range o.merged[queue[i]] {
			add(target)
		}
	}
	return out
}

// disconnect ends the progress of all states for j, which none of them has any
// more.
func (jl *Solver) disconnect(j *Job) {
	jl.mu.RLock()
	defer jl.mu.RUnlock()
	for _, st := range jl.actives {
		st.disconnect(j)
	}
}

// release releases the vertices that the job was building.
func (j *Job) release() (err error) {
	j.ownership().released.Do(func() {
		jl := j.list
		// the scheduler may still be at the edge that has just been answered
		jl.s.mu.Lock()
		jl.s.mu.Unlock() //nolint:staticcheck // it is only waited for
		jl.spreadFailures()
		err = j.discard()
		jl.disconnect(j)
		jl.sweepFailures()
		j.ownership().builds.releaseLeft()
	})
	return err
}
