package resolver

import (
	"context"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/session"
	sessionauth "github.com/moby/buildkit/session/auth"
)

// newDockerAuthorizer returns an authorizer that acts for the sessions of group
// that have a login for the host of a request. Anonymous sessions are used
// only when there is no login.
func newDockerAuthorizer(client *http.Client, handlerNS *authHandlerNS, sm *session.Manager, group session.Group) docker.Authorizer {
	if !session.IsLent(group) {
		return newGroupAuthorizer(client, handlerNS, sm, group)
	}
	return &loginAuthorizer{dockerAuthorizer: newGroupAuthorizer(client, handlerNS, sm, group)}
}

type loginAuthorizer struct {
	*dockerAuthorizer
}

func (a *loginAuthorizer) forHost(ctx context.Context, host string) *dockerAuthorizer {
	return newGroupAuthorizer(a.client, a.handlerNS, a.sm, sessionauth.Logins(ctx, a.sm, a.session, host))
}

// Authorize implements docker.Authorizer.
func (a *loginAuthorizer) Authorize(ctx context.Context, req *http.Request) error {
	return a.forHost(ctx, req.URL.Host).Authorize(ctx, req)
}

// AddResponses implements docker.Authorizer.
func (a *loginAuthorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	return a.forHost(ctx, responses[len(responses)-1].Request.URL.Host).AddResponses(ctx, responses)
}
