package auth

import (
	"context"
	"testing"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// credentials is the auth service of a client, with its logins by host.
type credentials struct {
	UnimplementedAuthServer
	byHost    map[string]string
	authority bool
}

func (c *credentials) Register(server *grpc.Server) {
	RegisterAuthServer(server, c)
}

func (c *credentials) Credentials(_ context.Context, req *CredentialsRequest) (*CredentialsResponse, error) {
	if c.authority {
		return nil, status.Error(codes.Unimplemented, "tokens only")
	}
	if secret := c.byHost[req.Host]; secret != "" {
		return &CredentialsResponse{Username: "user", Secret: secret}, nil
	}
	return &CredentialsResponse{}, nil
}

func (c *credentials) GetTokenAuthority(_ context.Context, req *GetTokenAuthorityRequest) (*GetTokenAuthorityResponse, error) {
	if !c.authority || c.byHost[req.Host] == "" {
		return nil, status.Error(codes.Unavailable, "no login")
	}
	return &GetTokenAuthorityResponse{PublicKey: make([]byte, 32)}, nil
}

func runSession(t *testing.T, sm *session.Manager, attach ...session.Attachable) string {
	s, err := session.NewSession(t.Context(), "")
	require.NoError(t, err)
	for _, a := range attach {
		s.Allow(a)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.WithoutCancel(t.Context()), session.Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn))))
	}()
	_, err = sm.Get(t.Context(), s.ID(), false)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		<-done
	})
	return s.ID()
}

func TestLogins(t *testing.T) {
	t.Parallel()
	sm, err := session.NewManager()
	require.NoError(t, err)

	none := runSession(t, sm)
	anonymous := runSession(t, sm, &credentials{})
	login := runSession(t, sm, &credentials{byHost: map[string]string{"example.com": "secret"}})
	authority := runSession(t, sm, &credentials{byHost: map[string]string{"example.com": "secret"}, authority: true})
	other := runSession(t, sm, &credentials{byHost: map[string]string{"other.com": "secret2"}})

	for _, tc := range []struct {
		name  string
		group []string
		host  string
		want  []string
	}{
		{name: "anonymous sessions hide nobody", group: []string{none, anonymous, login, other}, host: "example.com", want: []string{login}},
		{name: "logins stay in order", group: []string{authority, anonymous, login}, host: "example.com", want: []string{authority, login}},
		{name: "logins are those for the host", group: []string{login, other}, host: "other.com", want: []string{other}},
		{name: "anonymous access is the last resort", group: []string{anonymous, none, login}, host: "third.com", want: []string{anonymous, none, login}},
		{name: "a single session is not asked", group: []string{"gone"}, host: "example.com", want: []string{"gone"}},
		{name: "a session that is gone has no login", group: []string{"gone", login}, host: "example.com", want: []string{login}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := Logins(t.Context(), sm, session.NewGroup(tc.group...), tc.host)
			require.Equal(t, tc.want, session.AllSessionIDs(got))
		})
	}
	require.Nil(t, Logins(t.Context(), sm, nil, "example.com"))
}
