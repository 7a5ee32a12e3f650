package conformance

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/stretchr/testify/require"
)

// The registry folder has all images when it is served as the harness serves it.
func TestMirror(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a registry")
	}
	_, err := findBusybox()
	testutil.Require(t, err)
	registry, err := testbed.RegistryBinary(t.Context())
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "mirror")
	m, err := newMirror(t.Context(), registry, dir)
	require.NoError(t, err)
	t.Cleanup(m.close)
	require.NoFileExists(t, filepath.Join(dir, "config.yaml"), "the harness writes its own configuration")

	r, err := serve(t.Context(), registry, dir)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	for _, img := range images {
		ref, err := name.ParseReference(r.Host+"/"+img.ref, name.Insecure)
		require.NoError(t, err)
		got, err := remote.Image(ref)
		require.NoError(t, err, img.ref)
		if img.ref != foreignRef {
			require.NoError(t, validate.Image(got), img.ref)
			continue
		}
		mfst, err := got.Manifest()
		require.NoError(t, err)
		require.Equal(t, foreignLayer, mfst.Layers[0].MediaType)
		resp, err := http.Get(mfst.Layers[0].URLs[0]) //nolint:noctx
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Equal(t, mfst.Layers[0].Size, resp.ContentLength)
	}
}

// The images have the commands that the tests use and Debian's busybox lacks.
func TestImages(t *testing.T) {
	testutil.Require(t, testbed.Check())
	bb, err := findBusybox()
	testutil.Require(t, err)
	const accounts = `set -e
addgroup -g 2000 testgroup
adduser -D -u 1000 -G testgroup first
adduser -D second
adduser -D third
touch f
chown third:testgroup f
id -u first; id -g first; id -u second; id -gn second; stat -c '%u %U %G' f; ls -d /home/second
`
	const ids = "1000\n2000\n1001\nsecond\n1002 third testgroup\n/home/second\n"
	for _, tc := range []struct {
		name           string
		build          func(*busybox, string) (v1.Image, error)
		script, output string
	}{
		{"busybox", busyboxImage, accounts, ids},
		{"alpine", alpineImage, accounts, ids},
		{"apk", alpineImage, `
apk add --no-cache openssh git && ssh-keygen -q -t ed25519 -N '' -f /tmp/key && ssh-add -l; echo $?
cd /tmp && git init -q && git status -s`, "2\n?? key\n?? key.pub\n"},
		{"no package", alpineImage, "apk add git nosuch || command -v git; apk update || echo none", "none\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img, err := tc.build(bb, "")
			require.NoError(t, err)
			dir := t.TempDir()
			rc := mutate.Extract(img)
			defer rc.Close()
			tar := exec.Command("tar", "-x", "-C", dir)
			tar.Stdin = rc
			require.NoError(t, tar.Run())
			require.NoError(t, os.WriteFile(filepath.Join(dir, "dev/null"), nil, 0o666))

			cmd := exec.Command("/bin/sh", "-c", tc.script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
			cmd.Dir = "/"
			cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
			out, err := cmd.Output()
			require.NoError(t, err, "%s", out)
			require.Equal(t, tc.output, string(out))
		})
	}
}

// clean removes everything that a run leaves behind, including processes that ignore
// SIGTERM and their children.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	require.NoError(t, os.MkdirAll(run, 0o755))
	cmd := exec.Command("sh", "-c", "trap '' TERM; env -i sleep 1000 & echo $!; wait")
	cmd.Env = append(os.Environ(), marker+"="+run)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var child int
	_, err = fmt.Fscanln(out, &child)
	require.NoError(t, err)
	_, running := parent(child)
	require.True(t, running)
	other := exec.Command("sleep", "1000")
	other.Env = append(os.Environ(), marker+"="+run+"-other")
	require.NoError(t, other.Start())
	t.Cleanup(func() {
		if t.Failed() {
			for _, pid := range []int{cmd.Process.Pid, child, other.Process.Pid} {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})

	require.NoError(t, clean(run))
	require.NoDirExists(t, run)
	for _, pid := range []int{cmd.Process.Pid, child} {
		_, running := parent(pid)
		require.False(t, running, "process %d was not killed", pid)
	}
	_ = cmd.Wait() // the shell exits with 0 if its child is killed first
	require.NoError(t, other.Process.Kill(), "a process of another run was killed")
	require.Error(t, other.Wait())
}
