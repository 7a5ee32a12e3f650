package resolver

import (
	"context"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/session"
)

// newDockerAuthorizer returns an authorizer that acts for the sessions of group.
// If some of them are lent, it acts for one after the other, in the order of the
// group, until the registry accepts what one of them has to offer.
func newDockerAuthorizer(client *http.Client, handlerNS *authHandlerNS, sm *session.Manager, group session.Group) docker.Authorizer {
	if !session.IsLent(group) {
		return newGroupAuthorizer(client, handlerNS, sm, group)
	}
	ids := session.AllSessionIDs(group)
	if len(ids) < 2 { // the others have ended meanwhile
		return newGroupAuthorizer(client, handlerNS, sm, group)
	}
	a := &lentAuthorizer{handlerNS: handlerNS, ids: ids, current: map[string]int{}, used: map[string]int{}}
	for _, id := range ids {
		a.sessions = append(a.sessions, newGroupAuthorizer(client, handlerNS, sm, session.NewGroup(id)))
	}
	return a
}

// lentAuthorizer acts for one session at a time. The authorizer of a group asks no
// further than the first session that answers, and a client that is logged in
// nowhere answers as well: with the authority for anonymous tokens.
//
// To each session it is what it would be without the others: what a registry gets,
// and when a client is asked for its password, is what upstream does for a build
// with that session alone. Sessions after the one that is accepted are not asked.
type lentAuthorizer struct {
	handlerNS *authHandlerNS
	ids       []string            // of the sessions
	sessions  []*dockerAuthorizer // of one session each

	mu      sync.Mutex
	current map[string]int // session by host
	used    map[string]int // session by the authorization that it gave
}

// Authorize implements docker.Authorizer.
func (a *lentAuthorizer) Authorize(ctx context.Context, req *http.Request) error {
	for {
		i := a.session(req.URL.Host)
		err := a.sessions[i].Authorize(ctx, req)
		if err == nil {
			if header := req.Header.Get("Authorization"); header != "" {
				a.mu.Lock()
				a.used[header] = i
				a.mu.Unlock()
			}
			return nil
		}
		if !a.next(ctx, req.URL.Host, i) {
			return err
		}
	}
}

// AddResponses implements docker.Authorizer. A session whose authorization is
// refused gets another one, as the first can have been from an earlier request.
// If that is refused too, or if the session has none to offer, the next session is
// tried.
func (a *lentAuthorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	host := last.Request.URL.Host
	i := a.session(host)
	if by, refused := a.usedBy(last.Request); refused && by == i {
		switch again := len(responses) > 1 && responses[len(responses)-2].StatusCode == http.StatusUnauthorized; {
		case !again:
			a.forget(host, i)
		case !a.next(ctx, host, i):
			return a.sessions[i].AddResponses(ctx, responses)
		}
	}
	for {
		i := a.session(host)
		err := a.sessions[i].AddResponses(ctx, responses[len(responses)-1:])
		if err == nil || !a.next(ctx, host, i) {
			return err
		}
	}
}

// session returns the index of the session that acts for a host.
func (a *lentAuthorizer) session(host string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current[host]
}

// next goes on to the session after i, unless it is the last. Another request can
// have done that before.
func (a *lentAuthorizer) next(ctx context.Context, host string, i int) bool {
	if context.Cause(ctx) != nil || i+1 == len(a.sessions) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current[host] = max(a.current[host], i+1)
	return true
}

// usedBy returns the session that authorized a request, if one did.
func (a *lentAuthorizer) usedBy(req *http.Request) (i int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, ok = a.used[req.Header.Get("Authorization")]
	return i, ok
}

// forget drops what session i was given for host.
func (a *lentAuthorizer) forget(host string, i int) {
	a.handlerNS.muHandlers.Lock()
	defer a.handlerNS.muHandlers.Unlock()
	delete(a.handlerNS.fetchers, host+"/"+a.ids[i])
}
