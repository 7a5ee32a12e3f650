package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// TestChildFirst solves base lazily and evaluates a child of it in another
// build. Only base has the secret of its step.
func TestChildFirst(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if _, runcErr := exec.LookPath("runc"); err != nil || runcErr != nil || os.Getuid() != 0 {
		const reason = "needs root, runc and a static busybox"
		require.NotEqual(t, "true", os.Getenv("CI"), reason)
		t.Skip(reason)
	}
	c := startServer(t)

	dir := t.TempDir()
	dt, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "busybox"), dt, 0o755)) //nolint:gosec
	rootfs, err := fsutil.NewFS(dir)
	require.NoError(t, err)

	image := llb.Local("rootfs")
	base := image.Run(
		llb.Args([]string{"/busybox", "grep", "-q", "from base", "/run/secrets/token"}),
		llb.AddSecret("/run/secrets/token", llb.SecretID("token")),
	).Root()
	child := base.Run(llb.Args([]string{"/busybox", "true"})).Root()

	build := func(f func(context.Context, gateway.Client) error, attach ...session.Attachable) error {
		_, err := c.Build(t.Context(), client.SolveOpt{
			LocalMounts: map[string]fsutil.FS{"rootfs": rootfs},
			Session:     attach,
		}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
			return gateway.NewResult(), f(ctx, gc)
		}, nil)
		return err
	}
	solve := func(ctx context.Context, gc gateway.Client, st llb.State, evaluate bool) error {
		// so that both builds use the same folder
		def, err := st.Marshal(ctx, llb.LocalUniqueID("embed"))
		if err != nil {
			return err
		}
		_, err = gc.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: evaluate})
		return err
	}

	require.NoError(t, build(func(ctx context.Context, gc gateway.Client) error {
		caps := gc.BuildOpts().Caps
		require.NoError(t, caps.Supports(gatewaypb.CapGatewaySolveLoad), "BuildKit is the assembled tree")
		require.NoError(t, solve(ctx, gc, base, false))
		return build(func(ctx context.Context, gc gateway.Client) error {
			return solve(ctx, gc, child, true)
		})
	}, secretsprovider.FromMap(map[string][]byte{"token": []byte("from base")})))
}

func startServer(t *testing.T) *client.Client {
	dir := t.TempDir()
	addr := filepath.Join(dir, "embed.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, filepath.Join(dir, "root"), addr) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	c, err := client.New(t.Context(), "unix://"+addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.Wait(t.Context()))
	return c
}
