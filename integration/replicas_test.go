package integration

import (
	"context"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

// TestReplicas solves base on one replica, and evaluates a child that is chained on it on
// the same replica and on another one. docs/kubernetes.md refers to this test.
func TestReplicas(t *testing.T) {
	first := newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))
	second := newClient(t, newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload}))
	dir := t.TempDir()
	require.NoError(t, testbed.WriteRootfs(dir))
	locals := map[string]string{"rootfs": dir}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	base := peer{name: "base", secrets: map[string]string{"token": "base"}, locals: locals}
	child := peer{name: "child", secrets: map[string]string{"other": "child"}, locals: locals}

	state := sh(root, `test "$(cat /run/secrets/token)" = base`, secretFile("token"))
	require.NoError(t, base.run(t.Context(), first, func(ctx context.Context, b peerBuild) error {
		ref, err := b.solve(ctx, state)
		if err != nil {
			return err
		}
		evaluate := func(ctx context.Context, b peerBuild) error { return b.evaluate(ctx, sh(state, "true")) }
		require.ErrorContains(t, child.run(ctx, second, evaluate), "secret token: not found")
		require.NoError(t, child.run(ctx, first, evaluate))
		return ref.Evaluate(ctx)
	}))
}
