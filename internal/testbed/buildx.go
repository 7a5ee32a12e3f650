package testbed

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"
)

// builderName is what buildx calls a builder with the remote driver.
const builderName = "testbed"

// Builder is a buildx of some version connected to a daemon, with a
// configuration and credentials of its own.
type Builder struct {
	Version string
	Config  string // folder of config.json, DOCKER_CONFIG

	buildx string
	dir    string
	env    []string // added to the environment of buildx
	remove string   // builder whose containers are removed by Close

	// forward has the daemon reach services of this machine, if it does not anyway
	forward func(ctx context.Context, addrs ...string) error
}

// NewBuilder connects a version of buildx to a daemon through the remote
// driver. It must be closed.
func NewBuilder(ctx context.Context, version string, d *Daemon) (*Builder, error) {
	return NewRemoteBuilder(ctx, version, d.Addr)
}

// NewRemoteBuilder connects a version of buildx to an address through the
// remote driver, with options of the driver. It must be closed.
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

// newBuilder returns a buildx that is connected to nothing yet.
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

// Command is a call of buildx that sees nothing of the environment of this
// process. It is interrupted when ctx is done.
func (b *Builder) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, b.buildx, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + b.dir,
		"TMPDIR=" + b.dir,
		"BUILDX_CONFIG=" + filepath.Join(b.dir, "buildx"),
		"DOCKER_CONFIG=" + b.Config,
		// newer releases ask before they read files or forward an agent, older
		// ones do not know the flag that answers
		"BUILDX_BAKE_ENTITLEMENTS_FS=0",
	}
	cmd.Env = append(cmd.Env, b.env...)
	return cmd
}

// Output runs buildx in a folder, with more in its environment, and returns what
// it printed. In an error that is part of it.
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

// Close removes the configuration, and what buildx has started.
func (b *Builder) Close() error {
	var err error
	if b.remove != "" {
		_, err = output(b.Command(context.Background(), "rm", "--keep-state", b.remove))
	}
	return cmp.Or(err, errors.WithStack(os.RemoveAll(b.dir)))
}
