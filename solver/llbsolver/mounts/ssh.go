package mounts

import (
	"context"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// getSSHMountable returns a mountable for the SSH agent of the first session
// that offers it. If sessions are lent to the step, an optional agent is looked
// for in the same sessions as a required one, and nil is returned only after all
// of them have declined.
func (mm *MountManager) getSSHMountable(ctx context.Context, m *pb.Mount, g session.Group) (cache.Mountable, error) {
	if m.SSHOpt == nil || !m.SSHOpt.Optional || !session.IsLent(g) {
		return mm.firstSSHMountable(ctx, m, g)
	}
	required := m.CloneVT()
	required.SSHOpt.Optional = false
	mnt, err := mm.firstSSHMountable(ctx, required, g)
	if err != nil && context.Cause(ctx) == nil {
		return nil, nil
	}
	return mnt, err
}
