package session

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/status"
)

// SplitLent returns the sessions that other builds lend to g, in order, and g
// without them.
func SplitLent(g Group) (lent []string, own Group) {
	if !IsLent(g) {
		return nil, g
	}
	it, ok := g.SessionIterator().(LentIterator)
	if !ok {
		return nil, g
	}
	var ids []string
	for id := it.NextSession(); id != ""; id = it.NextSession() {
		if it.Lent() {
			lent = append(lent, id)
		} else {
			ids = append(ids, id)
		}
	}
	return lent, NewGroup(ids...)
}

// OneByOne calls f with each of the sessions that are lent, and then with own, until
// it succeeds or ctx is canceled. Unlike Any, it is for operations whose outcome a
// server decides, that can refuse what a session has to offer. To f, each session is
// the only one, so a credential of one is never taken for that of another.
//
// When all fail, the error is that of own, followed by the number of attempts.
func OneByOne(ctx context.Context, lent []string, own Group, f func(Group) error) error {
	for _, id := range lent {
		if err := f(NewGroup(id)); err == nil || context.Cause(ctx) != nil {
			return err
		}
	}
	err := f(own)
	if err == nil || len(lent) == 0 {
		return err
	}
	return withAsked(err, len(lent)+1)
}

// withAsked returns err, also the message of its gRPC status, followed by the number
// of builds that were asked.
func withAsked(err error, n int) error {
	asked := fmt.Sprintf(" (%d builds were asked)", n)
	st, ok := grpcerrors.AsGRPCStatus(err)
	err = fmt.Errorf("%w%s", err, asked)
	if !ok || st == nil {
		return err
	}
	p := st.Proto() // a copy
	p.Message += asked
	return &askedError{err, status.FromProto(p)}
}

// askedError is an error with its gRPC status, which is what a client is shown.
type askedError struct {
	error
	status *status.Status
}

func (e *askedError) Unwrap() error              { return e.error }
func (e *askedError) GRPCStatus() *status.Status { return e.status }
