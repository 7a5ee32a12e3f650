package auth

import (
	"context"
	"strings"
	"sync"

	"github.com/moby/buildkit/session"
)

// Once keeps the credentials that sessions returned, so that a session is asked at
// most once for a host. Otherwise a session would be asked again each time its login
// is offered to a registry that refuses it.
type Once struct {
	mu      sync.Mutex // protects answers
	answers map[string]credentials
}

type credentials struct {
	session, username, secret string
}

type onceKey struct{}

// Context returns a context in which CredentialsFunc keeps the answers in o.
func (o *Once) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, onceKey{}, o)
}

// CredentialsFunc returns a function that asks the sessions of g for the credentials
// of a host.
func CredentialsFunc(ctx context.Context, sm *session.Manager, g session.Group) func(string) (session, username, secret string, err error) {
	ask := askCredentials(ctx, sm, g)
	o, ok := ctx.Value(onceKey{}).(*Once)
	if !ok {
		return ask
	}
	return func(host string) (string, string, string, error) {
		key := host + "/" + strings.Join(session.AllSessionIDs(g), "/")
		o.mu.Lock()
		c, ok := o.answers[key]
		o.mu.Unlock()
		if ok {
			return c.session, c.username, c.secret, nil
		}
		sessionID, username, secret, err := ask(host)
		if err == nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.answers == nil {
				o.answers = map[string]credentials{}
			}
			o.answers[key] = credentials{sessionID, username, secret}
		}
		return sessionID, username, secret, err
	}
}
