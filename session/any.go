package session

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/pkg/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// connectTimeout is how long Any waits for sessions that are not
	// connected, all of them together.
	connectTimeout = 5 * time.Second

	// probeTimeout is how long a session may take to show that it is still
	// there after an error that may come from its connection.
	probeTimeout = time.Second
)

// LookupObserver is an iterator that is told what came of the sessions that it
// gave to Any: how many were asked, and which one answered, if any.
type LookupObserver interface {
	LookupDone(ctx context.Context, asked int, answered string)
}

// Subgroup returns a group of the sessions ids of g that observes lookups as g
// does.
func Subgroup(g Group, ids ...string) Group {
	return &subgroup{Group: NewGroup(ids...), parent: g}
}

type subgroup struct {
	Group
	parent Group
}

func (g *subgroup) SessionIterator() Iterator {
	it := g.Group.SessionIterator()
	if o, ok := g.parent.SessionIterator().(LookupObserver); ok {
		return &observedIterator{Iterator: it, LookupObserver: o}
	}
	return it
}

type observedIterator struct {
	Iterator
	LookupObserver
}

// Any calls f with the sessions of g in their order until one succeeds. A
// session that is not connected is waited for, but no longer than five seconds
// from the start of the call; a connected one has all the time that ctx
// leaves, or until it is closed. One that is closed while it is asked counts as
// one that is not connected.
//
// It returns nil when g is nil, ErrNoActiveSessions when it is empty and the
// cause of ctx when that is done. When a single session was asked its error is
// returned as it is. When several failed, the returned error is that of the
// last session that answered, together with their number, and errors.Is finds
// the errors of all of them.
func (sm *Manager) Any(ctx context.Context, g Group, f func(context.Context, string, Caller) error) error {
	if g == nil {
		return nil
	}
	it := g.SessionIterator()
	if it == nil {
		return nil
	}
	asked, answered := 0, ""
	if o, ok := it.(LookupObserver); ok {
		defer func() { o.LookupDone(ctx, asked, answered) }()
	}

	var failed failedSessions
	deadline := time.Now().Add(connectTimeout)
	for id := it.NextSession(); id != ""; id = it.NextSession() {
		asked++
		c, err := sm.connected(ctx, id, deadline)
		reached := err == nil
		if reached {
			err = f(c.Context(ctx), id, c)
		}
		if err == nil {
			answered = id
			return nil
		}
		if !reached || context.Cause(ctx) == nil && lost(ctx, c, err) {
			err = &unreachableError{err}
		}
		if context.Cause(ctx) != nil {
			return errors.Wrap(context.Cause(ctx), err.Error())
		}
		failed = append(failed, err)
	}
	return failed.err()
}

// connected returns the session when it is connected before the deadline.
func (sm *Manager) connected(ctx context.Context, id string, deadline time.Time) (Caller, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, errors.WithStack(context.DeadlineExceeded))
	defer cancel()
	if context.Cause(ctx) != nil {
		// the time is up, take the session only if it is there
		c, err := sm.Get(context.WithoutCancel(ctx), id, true)
		if cl, ok := c.(*client); err == nil && ok && cl != nil && !cl.closed() {
			return cl, nil
		}
	}
	return sm.Get(ctx, id, false)
}

// lost reports if err comes from the connection of a session, and not from the
// session. A call is canceled, or ends with the reason, when the session is
// closed on this side, and is Unavailable when the connection is cut. Sessions
// say the latter too, as clients do that have no token server, but then they are
// healthy.
func lost(ctx context.Context, c Caller, err error) bool {
	if cl, ok := c.(*client); ok && cl.closed() && errors.Is(err, context.Cause(cl.context())) {
		return true
	}
	switch grpcerrors.Code(err) {
	case codes.Canceled:
		return true
	case codes.Unavailable:
		ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errors.WithStack(context.DeadlineExceeded))
		defer cancel()
		_, err := grpc_health_v1.NewHealthClient(c.Conn()).Check(c.Context(ctx), &grpc_health_v1.HealthCheckRequest{})
		return err != nil && grpcerrors.Code(err) != codes.Unimplemented
	default:
		return false
	}
}

// IsUnreachable reports if err was returned by Any because no session could
// be asked, as opposed to being refused by one.
func IsUnreachable(err error) bool {
	var ue *unreachableError
	return errors.Is(err, ErrNoActiveSessions) || errors.As(err, &ue)
}

type unreachableError struct {
	error
}

func (e *unreachableError) Unwrap() error {
	return e.error
}

// failedSessions are the errors of the sessions that were asked, in order.
type failedSessions []error

func (errs failedSessions) err() error {
	switch len(errs) {
	case 0:
		return errors.WithStack(ErrNoActiveSessions)
	case 1:
		return errs[0]
	}
	res := &sessionsError{error: errs[len(errs)-1], all: errs}
	answered := false
	for _, err := range errs {
		if _, ok := err.(*unreachableError); ok { //nolint:errorlint // only what Any itself adds counts
			res.unreachable++
		} else {
			answered = true
		}
	}
	for i := len(errs) - 1; i >= 0 && answered; i-- {
		if _, ok := errs[i].(*unreachableError); !ok { //nolint:errorlint // see above
			res.error = errs[i]
			break
		}
	}
	return res
}

// sessionsError says that none of several sessions could serve a request. It
// is the error of the last one that answered, so that its code and details are
// what they would be with that session alone.
type sessionsError struct {
	error
	all         []error
	unreachable int
}

func (e *sessionsError) Error() string {
	msg := fmt.Sprintf("%s (%d builds were asked, none offered it", e.error, len(e.all))
	if e.unreachable > 0 {
		msg += fmt.Sprintf(", %d could not be reached", e.unreachable)
	}
	return msg + ")"
}

func (e *sessionsError) Unwrap() error {
	return e.error
}

func (e *sessionsError) Is(target error) bool {
	for _, err := range e.all {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
