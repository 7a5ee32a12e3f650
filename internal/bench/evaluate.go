package bench

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"github.com/tonistiigi/fsutil"
)

// buildxVersion is the version of buildx for bakes.
const buildxVersion = "v0.38.2"

//go:embed testdata/docker-bake.hcl
var bakeFile []byte

// withRootfs calls f with a temporary folder that has a root filesystem in rootfs, and
// with both folders as fsutil.FS.
func withRootfs(f func(dir string, files, rootfs fsutil.FS) (time.Duration, error)) (time.Duration, error) {
	dir, err := os.MkdirTemp("", "graphload-bench-")
	if err != nil {
		return 0, errors.WithStack(err)
	}
	defer os.RemoveAll(dir)
	if err := testbed.WriteRootfs(filepath.Join(dir, "rootfs")); err != nil {
		return 0, err
	}
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return 0, errors.WithStack(err)
	}
	rootfs, err := fsutil.NewFS(filepath.Join(dir, "rootfs"))
	if err != nil {
		return 0, errors.WithStack(err)
	}
	return f(dir, files, rootfs)
}

// solveAndEvaluate solves and evaluates st in a build with local files.
func solveAndEvaluate(ctx context.Context, t *Target, st llb.State, local map[string]fsutil.FS) (d time.Duration, err error) {
	def, err := marshal(ctx, st)
	if err != nil {
		return 0, err
	}
	_, err = t.Client.Build(ctx, client.SolveOpt{LocalMounts: local}, "", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		start := time.Now()
		if err := evaluate(ctx, gc, def); err != nil {
			return nil, err
		}
		d = time.Since(start)
		return gateway.NewResult(), nil
	}, nil)
	return d, err
}

func evaluate(ctx context.Context, gc gateway.Client, def *pb.Definition) error {
	res, err := gc.Solve(ctx, gateway.SolveRequest{Definition: def})
	if err != nil {
		return err
	}
	ref, err := res.SingleRef()
	if err != nil {
		return err
	}
	return ref.Evaluate(ctx)
}

func evaluateFileOps(n int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		st := llb.Scratch()
		id := identity.NewID()
		for i := range n {
			st = st.File(llb.Mkfile(fmt.Sprintf("/file%d", i), 0o600, []byte(id)))
		}
		return solveAndEvaluate(ctx, t, st, nil)
	})
}

func evaluateExecs(n int) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		return withRootfs(func(_ string, _, rootfs fsutil.FS) (time.Duration, error) {
			st := llb.Scratch().File(llb.Copy(llb.Local("rootfs"), "/", "/"))
			id := identity.NewID()
			for i := range n {
				st = st.Run(llb.Args([]string{"/bin/sh", "-c", fmt.Sprintf("echo %d of %s > /file", i, id)})).Root()
			}
			return solveAndEvaluate(ctx, t, st, map[string]fsutil.FS{"rootfs": rootfs})
		})
	})
}

// stages returns a Dockerfile of ten stages, each of which builds on the one before.
func stages() string {
	var b strings.Builder
	b.WriteString("FROM scratch AS base\nCOPY rootfs /\n")
	for i := range 8 {
		fmt.Fprintf(&b, "FROM base AS stage%d\nARG RUN\n", i)
		if i > 0 {
			fmt.Fprintf(&b, "COPY --from=stage%d /file%d /\n", i-1, i-1)
		}
		fmt.Fprintf(&b, "RUN echo %d of $RUN > /file%d\n", i, i)
	}
	b.WriteString("FROM scratch\nCOPY --from=stage7 / /\n")
	return b.String()
}

// dockerfile measures a build of ten stages, with all or none of them in the cache.
func dockerfile(cached bool) runFunc {
	return timed(func(ctx context.Context, t *Target) (time.Duration, error) {
		return withRootfs(func(dir string, files, _ fsutil.FS) (time.Duration, error) {
			if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(stages()), 0o600); err != nil {
				return 0, errors.WithStack(err)
			}
			opt := client.SolveOpt{
				Frontend:      "dockerfile.v0",
				FrontendAttrs: map[string]string{"build-arg:RUN": identity.NewID()},
				LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files},
			}
			if cached {
				if _, err := t.Client.Solve(ctx, nil, opt, nil); err != nil {
					return 0, err
				}
			}
			start := time.Now()
			_, err := t.Client.Solve(ctx, nil, opt, nil)
			return time.Since(start), err
		})
	})
}

// bake measures a bake of a chain of targets without the cache.
var bake = timed(func(ctx context.Context, t *Target) (time.Duration, error) {
	b, err := t.Builder(ctx)
	if err != nil {
		return 0, err
	}
	return withRootfs(func(dir string, _, _ fsutil.FS) (time.Duration, error) {
		file := filepath.Join(dir, "docker-bake.hcl")
		if err := os.WriteFile(file, bakeFile, 0o600); err != nil {
			return 0, errors.WithStack(err)
		}
		start := time.Now()
		err := b.Bake(ctx, file, nil, "--no-cache")
		return time.Since(start), err
	})
})
