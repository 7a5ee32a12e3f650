package mounts

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sessiontest"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// agent returns an attachable of a client that forwards an agent under an id. The
// agent has a key, or is no longer running.
func agent(t *testing.T, id string, running bool) session.Attachable {
	var path string
	if running {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		block, err := ssh.MarshalPrivateKey(key, "")
		require.NoError(t, err)
		path = filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	} else {
		path = filepath.Join(t.TempDir(), "agent.sock")
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
		require.NoError(t, err)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
	}
	a, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: id, Paths: []string{path}}})
	require.NoError(t, err)
	return a
}

// noIDMap is the part of a cache manager that the mount manager needs here.
type noIDMap struct {
	cache.Manager
}

func (noIDMap) IdentityMapping() *user.IdentityMapping { return nil }

// lent returns a group of sessions. All but the last are lent.
func lent(ids ...string) session.Group {
	return &lentGroup{ids: ids}
}

type lentGroup struct {
	ids  []string
	next int
}

func (g *lentGroup) Lent() bool                        { return g.next < len(g.ids) }
func (g *lentGroup) SessionIterator() session.Iterator { return &lentGroup{ids: g.ids} }

func (g *lentGroup) NextSession() string {
	if g.next == len(g.ids) {
		return ""
	}
	g.next++
	return g.ids[g.next-1]
}

func TestOptionalSSH(t *testing.T) {
	sm, err := session.NewManager()
	require.NoError(t, err)
	mm := NewMountManager("test", noIDMap{}, sm)

	none := sessiontest.Connect(t, sm)
	other := sessiontest.Connect(t, sm, agent(t, "other", true))
	offers := sessiontest.Connect(t, sm, agent(t, "default", true))
	ended := sessiontest.Connect(t, sm, agent(t, "default", false))

	for _, tc := range []struct {
		name     string
		group    session.Group
		required bool
		found    bool
		running  bool // if the agent that was found must be running
		err      string
	}{
		{name: "behind sessions that decline", group: lent(none, other, offers), found: true},
		{name: "lent", group: lent(offers, none), found: true},
		{name: "no session offers it", group: lent(none, other)},
		{name: "one is not running", group: lent(ended, offers), found: true, running: true},
		{name: "none is running", group: lent(ended, ended), found: true},
		{name: "required and one is not running", group: lent(ended, offers), required: true, found: true, running: true},
		{name: "one cannot be reached", group: lent("gone", offers), found: true},
		{name: "required and offered", group: lent(none, offers), required: true, found: true},
		{name: "required by id, no session offers it", group: lent(other, none), required: true, err: `no SSH key "default" forwarded from the client (2 builds were asked)`},
		// nothing is lent: as upstream
		{name: "the first session has no agent", group: session.NewGroup(none, offers)},
		{name: "a single session without", group: session.NewGroup(none)},
		{name: "a single session that cannot be reached", group: session.NewGroup("gone"), err: "no active session for gone"},
		{name: "no session", group: session.NewGroup(), err: "no active sessions"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &pb.Mount{MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: "default", Optional: !tc.required}}
			mnt, err := mm.MountableSSH(t.Context(), m, tc.group)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.found, mnt != nil, "found an agent")
			if tc.running {
				require.NoError(t, checkAgent(t.Context(), mnt.(*sshMount).caller, ""))
			}
			require.Equal(t, !tc.required, m.SSHOpt.Optional, "the mount must not be changed")
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.WithStack(context.Canceled))
	_, err = mm.MountableSSH(ctx, &pb.Mount{SSHOpt: &pb.SSHOpt{Optional: true}}, lent(none, other))
	require.ErrorIs(t, err, context.Canceled, "a canceled build returns its cause")
}

func TestSecretOfBase(t *testing.T) {
	t.Parallel()
	sm, err := session.NewManager()
	require.NoError(t, err)
	mm := NewMountManager("test", noIDMap{}, sm)

	none := sessiontest.Connect(t, sm)
	base := sessiontest.Connect(t, sm, secretsprovider.FromMap(map[string][]byte{"token": []byte("base"), "base": []byte("1")}))
	child := sessiontest.Connect(t, sm, secretsprovider.FromMap(map[string][]byte{"token": []byte("child"), "child": []byte("1")}))

	get := func(id string, optional bool, group ...string) (string, error) {
		m := &pb.Mount{MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: id, Optional: optional}}
		mnt, err := mm.MountableSecret(t.Context(), m, lent(group...))
		if err != nil || mnt == nil {
			return "", err
		}
		return string(mnt.(*secretMount).data), nil
	}
	for range 100 {
		v, err := get("token", false, base, child)
		require.NoError(t, err)
		require.Equal(t, "base", v, "the value is that of the first session that has it")
	}
	v, err := get("child", false, none, base, child)
	require.NoError(t, err)
	require.Equal(t, "1", v)

	_, err = get("missing", false, none, base, child)
	require.ErrorIs(t, err, secrets.ErrNotFound)
	require.EqualError(t, err, "secret missing: not found (3 builds were asked)")

	v, err = get("missing", true, "gone", base)
	require.NoError(t, err, "an optional secret survives a session that cannot be reached")
	require.Empty(t, v)
	v, err = get("base", true, "gone", base)
	require.NoError(t, err)
	require.Equal(t, "1", v)
}
