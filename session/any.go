package session

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// connectTimeout is how long Any waits for a session that is not connected.
const connectTimeout = 5 * time.Second

// LentGroup is a group that has its own sessions, and sessions that other builds
// lend to it.
type LentGroup interface {
	Group
	// Lent reports if sessions are lent to the group.
	Lent() bool
}

// LentIterator is the iterator of a LentGroup.
type LentIterator interface {
	Iterator
	// Lent reports if the session that NextSession returned last is lent.
	Lent() bool
}

// LookupObserver is a LentIterator that Any tells the outcome: how many of the
// returned sessions it asked, and if a lent one answered.
type LookupObserver interface {
	LookupDone(ctx context.Context, asked int, answered, lent bool)
}

// IsLent reports if sessions of other builds are lent to g.
func IsLent(g Group) bool {
	lg, ok := g.(LentGroup)
	return ok && lg.Lent()
}

// Any calls f with the sessions of g in their order until one succeeds. It waits up
// to five seconds for a session that is not connected.
//
// Any returns nil if g is nil, and ErrNoActiveSessions if g is empty. If all sessions
// fail, it returns the error of the last one. If sessions are lent to the group, it
// returns the error of the group's own last session, as it would without the lent
// ones, followed by the number of sessions; errors.Is finds a target only if all
// sessions failed with it.
func (sm *Manager) Any(ctx context.Context, g Group, f func(context.Context, string, Caller) error) error {
	if !IsLent(g) {
		return sm.anyOwn(ctx, g, f)
	}
	it, ok := g.SessionIterator().(LentIterator)
	if !ok {
		return sm.anyOwn(ctx, g, f)
	}

	var failed sessionsError
	gone := errors.WithStack(ErrNoActiveSessions)
	answered, lent := false, false
	if o, ok := it.(LookupObserver); ok {
		defer func() { o.LookupDone(ctx, len(failed.all), answered, lent) }()
	}
	for id := it.NextSession(); id != ""; id = it.NextSession() {
		lent = it.Lent()
		if lent && sm.isGone(ctx, id, g) {
			continue
		}
		closed, err := sm.ask(ctx, id, f)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return errors.Wrap(cause, err.Error())
		}
		if err != nil && closed {
			gone = err // returned only if no other session answers
			continue
		}
		failed.all = append(failed.all, err)
		if err == nil {
			answered = true
			return nil
		}
		if failed.error == nil || !lent {
			failed.error = err
		}
	}
	if failed.n = len(failed.all); failed.n > 1 {
		return &failed
	}
	if failed.error == nil {
		return gone
	}
	return failed.error
}

// ask calls f with the session, and reports if the session is not connected or was
// closed during the call.
func (sm *Manager) ask(ctx context.Context, id string, f func(context.Context, string, Caller) error) (closed bool, err error) {
	connectCtx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.WithStack(context.DeadlineExceeded))
	defer cancel()
	c, err := sm.Get(connectCtx, id, false)
	if err != nil {
		return true, err
	}
	callCtx := c.Context(ctx)
	err = f(callCtx, id, c)
	return err != nil && isLost(callCtx, c.Conn(), err), err
}

// isLost reports if a session is closed or about to be closed. A request fails with
// its connection, and the session is closed a moment later. The state of the
// connection also changes after the request has failed, so isLost waits for it.
func isLost(ctx context.Context, cc *grpc.ClientConn, err error) bool {
	if code := grpcerrors.Code(err); code == codes.Unavailable || code == codes.Canceled {
		waitCtx, cancel := context.WithTimeoutCause(ctx, time.Second, errors.WithStack(context.DeadlineExceeded))
		defer cancel()
		if cc.WaitForStateChange(waitCtx, connectivity.Ready) {
			return true
		}
	}
	return context.Cause(ctx) != nil
}

// askedError is an error followed by the number of builds that were asked. A client
// is shown what it would be shown of the error, and the number.
type askedError struct {
	error
	n int
}

func (e *askedError) asked() string { return fmt.Sprintf(" (%d builds were asked)", e.n) }
func (e *askedError) Error() string { return e.error.Error() + e.asked() }
func (e *askedError) Unwrap() error { return e.error }

// As finds the status of a client's error with the number, as grpcerrors.ToGRPC
// compares it with GRPCStatus.
func (e *askedError) As(target any) bool {
	found := errors.As(e.error, target)
	if found {
		errors.As(grpcerrors.FromGRPC(e.GRPCStatus().Err()), target)
	}
	return found
}

func (e *askedError) GRPCStatus() *status.Status {
	st, ok := grpcerrors.AsGRPCStatus(e.error)
	if !ok || st == nil {
		return status.New(grpcerrors.Code(e.error), e.Error())
	}
	p := st.Proto() // a copy
	p.Message += e.asked()
	return status.FromProto(p)
}

// sessionsError says that none of several sessions could serve a request. It is the
// error of one of them, and unwraps to nothing, as that is not an error of all.
type sessionsError struct {
	askedError
	all []error
}

func (e *sessionsError) Unwrap() error { return nil }

// Is reports if all sessions failed with target.
func (e *sessionsError) Is(target error) bool {
	for _, err := range e.all {
		if !errors.Is(err, target) {
			return false
		}
	}
	return true
}
