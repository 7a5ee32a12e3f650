package mounts

import (
	"context"
	"strings"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"google.golang.org/grpc/metadata"
)

// getSSHMountable returns a mountable for the SSH agent of the first session
// that offers it. If sessions are lent to the step, an agent that is not running does
// not count, and all sessions are asked for an optional agent, as for a required one.
// If no session has a running agent, the step gets what it would get from its own
// sessions.
func (mm *MountManager) getSSHMountable(ctx context.Context, m *pb.Mount, g session.Group) (cache.Mountable, error) {
	if m.SSHOpt == nil || !session.IsLent(g) {
		return mm.firstSSHMountable(ctx, m, g)
	}
	var id string
	err := mm.sm.Any(ctx, g, func(ctx context.Context, sessionID string, c session.Caller) error {
		id = sessionID
		return checkAgent(ctx, c, m.SSHOpt.ID)
	})
	if err == nil {
		return mm.firstSSHMountable(ctx, m, session.NewGroup(id))
	}
	if context.Cause(ctx) != nil {
		return nil, err
	}
	_, own := session.SplitLent(g)
	mnt, ownErr := mm.firstSSHMountable(ctx, m, own)
	if ownErr != nil {
		return mm.firstSSHMountable(ctx, m, g) // the error has the number of builds that were asked
	}
	return mnt, nil
}

// probeTimeout is how long to wait for a session to report that its agent is not
// running.
const probeTimeout = time.Second

// checkAgent returns an error if the session does not offer the agent, or if the
// agent is not running. It ignores other failures, because closing the connection can
// cause them.
func checkAgent(ctx context.Context, c session.Caller, id string) error {
	if err := sshforward.CheckSSHID(ctx, c, id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errors.WithStack(context.DeadlineExceeded))
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, sshforward.KeySSHID, id)
	stream, err := sshforward.NewSSHClient(c.Conn()).ForwardAgent(ctx)
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		err = stream.RecvMsg(&sshforward.BytesMessage{})
	}
	if strings.Contains(err.Error(), "failed to connect to") { // message of sshprovider
		return errors.Wrapf(err, "SSH agent %s is not running", id)
	}
	return nil
}
