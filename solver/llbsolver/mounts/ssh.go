package mounts

import (
	"context"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/graphload"
)

// getSSHMountable returns a mountable for the SSH agent of the first session
// that offers it. An optional agent is looked for in the same sessions as a
// required one, and nil is returned only after all that could be asked have
// declined. When none could be asked the error is returned, as for a required
// agent.
func (mm *MountManager) getSSHMountable(ctx context.Context, m *pb.Mount, g session.Group) (cache.Mountable, error) {
	if m.SSHOpt == nil || !m.SSHOpt.Optional || !graphload.Enabled() {
		return mm.firstSSHMountable(ctx, m, g)
	}
	required := m.CloneVT()
	required.SSHOpt.Optional = false
	mnt, err := mm.firstSSHMountable(ctx, required, g)
	if err != nil && context.Cause(ctx) == nil && !session.IsUnreachable(err) {
		return nil, nil
	}
	return mnt, err
}
