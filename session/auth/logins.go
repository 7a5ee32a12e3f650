package auth

import (
	"context"

	"github.com/moby/buildkit/session"
	"golang.org/x/sync/errgroup"
)

// Logins returns the sessions of g that have a login for host, in the order of
// g. Anonymous access is the last resort: all sessions of g are returned when
// none has a login, and also when there is no choice between sessions. Sessions
// that cannot be asked have no login.
//
// The functions of this package end their search at the first session that
// answers, with or without credentials. Without this choice an anonymous
// session would hide the login of the one after it.
func Logins(ctx context.Context, sm *session.Manager, g session.Group, host string) session.Group {
	ids := session.AllSessionIDs(g)
	if sm == nil || len(ids) < 2 {
		return g
	}

	has := make([]bool, len(ids))
	var eg errgroup.Group
	for i, id := range ids {
		eg.Go(func() error {
			has[i] = hasLogin(ctx, sm, session.NewGroup(id), host)
			return nil
		})
	}
	eg.Wait()

	var logins []string
	for i, id := range ids {
		if has[i] {
			logins = append(logins, id)
		}
	}
	if len(logins) == 0 {
		return session.NewGroup(ids...) // and no lookup that somebody answers
	}
	return session.NewGroup(logins...)
}

func hasLogin(ctx context.Context, sm *session.Manager, g session.Group, host string) bool {
	_, username, secret, err := CredentialsFunc(ctx, sm, g)(host)
	if err == nil && (username != "" || secret != "") {
		return true
	}
	_, pubKey, err := GetTokenAuthority(ctx, host, sm, g)
	return err == nil && pubKey != nil
}
