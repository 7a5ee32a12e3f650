package testbed

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// builderName is the name in buildx of a builder with the remote driver.
const builderName = "testbed"

// Builder is a version of buildx that is connected to a daemon, with its own
// configuration and credentials.
type Builder struct {
	Version string
	Config  string // folder of config.json, DOCKER_CONFIG

	buildx string
	dir    string
	env    []string // added to the environment of buildx
	remove string   // builder whose containers are removed by Close

	// forward lets the daemon reach services of this machine; nil if it can already
	forward func(ctx context.Context, addrs ...string) error
}

// NewBuilder connects a version of buildx to a daemon through the remote driver. The
// caller must close it.
func NewBuilder(ctx context.Context, version string, d *Daemon) (*Builder, error) {
	return NewRemoteBuilder(ctx, version, d.Addr)
}

// NewRemoteBuilder connects a version of buildx to an address through the remote
// driver, with options of the driver. The caller must close it.
func NewRemoteBuilder(ctx context.Context, version, addr string, options ...string) (_ *Builder, retErr error) {
	b, err := newBuilder(ctx, version)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			b.Close()
		}
	}()
	args := []string{"create", "--use", "--name", builderName, "--driver", "remote"}
	for _, opt := range options {
		args = append(args, "--driver-opt", opt)
	}
	if _, err := output(b.Command(ctx, append(args, addr)...)); err != nil {
		return nil, err
	}
	return b, nil
}

// newBuilder returns a buildx that is not connected yet.
func newBuilder(ctx context.Context, version string, env ...string) (*Builder, error) {
	bin, err := Buildx(ctx, version)
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-buildx-")
	if err != nil {
		return nil, err
	}
	b := &Builder{Version: version, Config: filepath.Join(dir, "docker"), buildx: bin, dir: dir, env: env}
	if err := os.Mkdir(b.Config, 0o700); err != nil {
		b.Close()
		return nil, errors.WithStack(err)
	}
	return b, nil
}

// Command returns a call of buildx that inherits only PATH from the environment. It
// is interrupted when ctx is done.
func (b *Builder) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, b.buildx, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + b.dir,
		"TMPDIR=" + b.dir,
		"BUILDX_CONFIG=" + filepath.Join(b.dir, "buildx"),
		"DOCKER_CONFIG=" + b.Config,
		// newer releases ask before they read files or forward an agent, and older
		// releases do not know the flag that answers
		"BUILDX_BAKE_ENTITLEMENTS_FS=0",
	}
	cmd.Env = append(cmd.Env, b.env...)
	return cmd
}

// Output runs buildx in the folder dir, with env added to its environment, and
// returns its output. An error includes the output.
func (b *Builder) Output(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := b.Command(ctx, args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, env...)
	dt, err := output(cmd)
	return string(dt), err
}

// Bake runs buildx bake on a bake file, in its folder.
func (b *Builder) Bake(ctx context.Context, file string, env []string, args ...string) error {
	_, err := b.BakeLog(ctx, file, env, args...)
	return err
}

// BakeLog is Bake, and returns the plain progress.
func (b *Builder) BakeLog(ctx context.Context, file string, env []string, args ...string) (string, error) {
	args = append([]string{"bake", "--file", filepath.Base(file), "--progress", "plain"}, args...)
	return b.Output(ctx, filepath.Dir(file), env, args...)
}

// Close removes the configuration, and the containers that buildx started.
func (b *Builder) Close() error {
	var err error
	if b.remove != "" {
		_, err = output(b.Command(context.Background(), "rm", "--keep-state", b.remove))
	}
	return cmp.Or(err, errors.WithStack(os.RemoveAll(b.dir)))
}
