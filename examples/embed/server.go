// Command embed is a small build daemon that uses BuildKit as a library: the
// control API on the OCI worker, without frontends and remote caches. It loads
// lazy solves into the graph, because go.mod replaces BuildKit by the assembled
// tree. The program itself needs no change for that.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/runc"
	"github.com/pkg/errors"
	"google.golang.org/grpc"
)

func main() {
	root := flag.String("root", "/var/lib/embed", "state folder")
	addr := flag.String("addr", "/run/embed.sock", "unix socket to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *root, *addr); err != nil {
		fmt.Fprintf(os.Stderr, "embed: %v\n", err)
		os.Exit(1)
	}
}

// serve serves the control API on a unix socket until ctx is done.
func serve(ctx context.Context, root, addr string) (retErr error) {
	ctrl, err := newController(ctx, root)
	if err != nil {
		return err
	}
	defer func() {
		if err := ctrl.Close(); retErr == nil {
			retErr = err
		}
	}()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", addr)
	if err != nil {
		return errors.WithStack(err)
	}
	server := grpc.NewServer()
	ctrl.Register(server)
	defer context.AfterFunc(ctx, server.Stop)()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return errors.WithStack(err)
	}
	return nil
}

func newController(ctx context.Context, root string) (*control.Controller, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	w, err := newWorker(ctx, root)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(root, "cache.db"))
	if err != nil {
		return nil, err
	}
	history, err := boltutil.Open(filepath.Join(root, "history.db"), 0o600, nil)
	if err != nil {
		return nil, err
	}
	return control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		CacheManager:     solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		CacheStore:       cache,
		HistoryDB:        history,
		HistoryConfig:    &config.HistoryConfig{},
		LeaseManager:     w.LeaseManager(),
		ContentStore:     w.ContentStore(),
		GarbageCollect:   w.GarbageCollect,
		GracefulStop:     ctx.Done(),
	})
}

// newWorker returns a worker that runs steps with runc, in the network of the
// host.
func newWorker(ctx context.Context, root string) (*base.Worker, error) {
	snapshotter := runc.SnapshotterFactory{
		Name: "native",
		New:  func(root string) (snapshots.Snapshotter, error) { return native.NewSnapshotter(root) },
	}
	opt, err := runc.NewWorkerOpt(root, snapshotter, false, oci.ProcessSandbox, nil, nil,
		netproviders.Opt{Mode: "host"}, nil, "", "", false, nil, "", "", nil)
	if err != nil {
		return nil, err
	}
	opt.RegistryHosts = resolver.NewRegistryConfig(nil)
	return base.NewWorker(ctx, opt)
}
