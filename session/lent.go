package session

import (
	"context"
	"fmt"
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
	return fmt.Errorf("%w (%d builds were asked)", err, len(lent)+1)
}
