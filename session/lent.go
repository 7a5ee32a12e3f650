package session

import (
	"context"
	"slices"
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

// OneByOne calls f with each of the sessions that lent returns, and then with what own
// returns, until f succeeds or ctx is canceled. Unlike Any, it is for operations whose outcome
// a server decides, because a server can refuse the credential of a session. Each
// call of f has one session only, so a credential of one session is never mistaken
// for that of another.
//
// If all calls fail, the error is that of own, followed by the number of attempts.
func OneByOne(ctx context.Context, lent func() []string, own func() Group, f func(Group) error) error {
	var tried []string
	for {
		ids := slices.DeleteFunc(lent(), func(id string) bool { return slices.Contains(tried, id) })
		if len(ids) == 0 {
			break
		}
		tried = append(tried, ids[0])
		if err := f(&oneLent{id: ids[0], lent: lent}); err == nil || context.Cause(ctx) != nil {
			return err
		}
	}
	err := f(own())
	if err == nil || len(tried) == 0 || context.Cause(ctx) != nil {
		return err
	}
	return &askedError{err, len(tried) + 1}
}

// oneLent is a group of one session, as long as that session is lent.
type oneLent struct {
	id   string
	lent func() []string
	next bool
}

func (g *oneLent) Lent() bool                { return true }
func (g *oneLent) SessionIterator() Iterator { return &oneLent{id: g.id, lent: g.lent, next: true} }

func (g *oneLent) NextSession() string {
	if !g.next {
		return ""
	}
	g.next = false
	return g.id
}

// IsClosed reports if the session of c has been closed. Contexts of c are canceled a
// moment later.
func IsClosed(c Caller) bool {
	if s, ok := c.(*client); ok {
		return s.closed()
	}
	return context.Cause(c.Context(context.Background())) != nil
}

// isGone reports if a session that was lent to g has been closed. A session that is
// not connected may still connect. A closed session is no longer lent, so isGone
// checks that.
func (sm *Manager) isGone(ctx context.Context, id string, g Group) bool {
	c, err := sm.Get(ctx, id, true)
	if err != nil || c != nil && !IsClosed(c) {
		return false
	}
	if one, ok := g.(*oneLent); ok {
		return !slices.Contains(one.lent(), id)
	}
	lent, _ := SplitLent(g)
	return !slices.Contains(lent, id)
}
