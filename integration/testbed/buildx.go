package testbed

import (
	"context"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
)

// Builder is a buildx of some version connected to a daemon, with a
// configuration of its own.
type Builder struct {
	buildx string
	config string
	env    []string
}

// builderName is the same everywhere, configurations are not shared.
const builderName = "graphload"

// NewBuilder connects a version of buildx to a daemon through the remote
// driver. It must be closed.
func NewBuilder(ctx context.Context, version string, d *Daemon) (_ *Builder, retErr error) {
	bin, err := Buildx(ctx, version)
	if err != nil {
		return nil, err
	}
	config, err := os.MkdirTemp("", "graphload-buildx-")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	b := &Builder{buildx: bin, config: config, env: []string{
		"BUILDX_CONFIG=" + filepath.Join(config, "buildx"),
		"DOCKER_CONFIG=" + filepath.Join(config, "docker"),
		"BUILDX_BAKE_ENTITLEMENTS_FS=0",
	}}
	defer func() {
		if retErr != nil {
			b.Close()
		}
	}()
	if _, err := run(ctx, b.env, bin, "create", "--name", builderName, "--driver", "remote", d.Addr); err != nil {
		return nil, err
	}
	return b, nil
}

// Bake runs buildx bake on the bake file of a project folder. Everything that
// was printed is part of the error.
func (b *Builder) Bake(ctx context.Context, dir string, env []string, args ...string) error {
	args = append([]string{"bake", "--builder", builderName, "--progress", "plain", "-f", filepath.Join(dir, "docker-bake.hcl")}, args...)
	_, err := run(ctx, append(append([]string{"CONTEXT=" + dir}, b.env...), env...), b.buildx, args...)
	return err
}

// Close removes the configuration.
func (b *Builder) Close() error {
	return errors.WithStack(os.RemoveAll(b.config))
}
