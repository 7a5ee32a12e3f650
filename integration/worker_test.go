package integration

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/stretchr/testify/require"
)

// TestNativeSnapshotter bakes the scenarios of the demo with the snapshotter that copies
// layers.
func TestNativeSnapshotter(t *testing.T) {
	requireTestbed(t)
	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Snapshotter: "native"})
	runScenarios(t, newBuilder(t, d), 1)
}

// TestDockerContainerd bakes the scenarios of the demo with the worker that runs steps in
// Debian's containerd.
func TestDockerContainerd(t *testing.T) {
	requireDocker(t)
	for _, version := range containerBuildx {
		d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Containerd: true})
		workers, err := newClient(t, d).ListWorkers(t.Context())
		require.NoError(t, err)
		require.Len(t, workers, 1)
		require.Equal(t, "containerd", workers[0].Labels["org.mobyproject.buildkit.worker.executor"])
		b, err := testbed.NewBuilder(t.Context(), version, d)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		runScenarios(t, b, *containerRuns)
	}
}

// TestDockerEmulated runs a step with a secret that is really of another architecture:
// Debian's busybox for arm64 in an emulator.
func TestDockerEmulated(t *testing.T) {
	requireDocker(t)
	emulator, rootfs := t.TempDir(), t.TempDir()
	writeEmulator(t, emulator)
	writeARM64Shell(t, rootfs)
	dt, err := os.ReadFile(rootfs + "/bin/sh")
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(dt, []byte("\x7fELF")) && dt[18] == 183, "a program for aarch64, see elf(5)")

	d := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload, Env: []string{"PATH=" + emulator + ":" + os.Getenv("PATH")}})
	c := newClient(t, d)
	locals := map[string]string{"rootfs": rootfs}
	root := llb.Scratch().File(llb.Copy(llb.Local("rootfs", llb.SharedKeyHint("rootfs")), "/", "/"))
	state := sh(root, `read -r token < /run/secrets/token; echo "$token" > /seen`, secretFile("token"), llb.LinuxArm64)
	base := peer{name: "base", secrets: map[string]string{"token": "base"}, locals: locals}
	child := peer{name: "child", secrets: map[string]string{"token": "child"}, locals: locals}
	require.NoError(t, base.run(t.Context(), c, func(ctx context.Context, b peerBuild) error {
		if _, err := b.solve(ctx, state); err != nil {
			return err
		}
		return child.run(ctx, c, func(ctx context.Context, b peerBuild) error {
			ref, err := b.solve(ctx, sh(state, `read -r seen < /seen; echo "child of $seen" > /child`, llb.LinuxArm64))
			if err != nil {
				return err
			}
			seen, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/child"})
			require.Equal(t, "child of base\n", string(seen))
			return err
		})
	}))
}
