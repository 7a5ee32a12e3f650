package testbed

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/pkg/errors"
	"golang.org/x/crypto/ssh/agent"
)

// NamedAgent is an SSH agent in this process, whose only key has a name as its
// comment. The command firstkey prints that comment.
type NamedAgent struct {
	Socket string

	listener net.Listener
	dir      string
	wg       sync.WaitGroup
}

// StartNamedAgent starts an agent. The caller must close it.
func StartNamedAgent(name string) (_ *NamedAgent, retErr error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: key, Comment: name}); err != nil {
		return nil, errors.WithStack(err)
	}
	dir, err := tempDir("graphload-agent-")
	if err != nil {
		return nil, err
	}
	a := &NamedAgent{Socket: filepath.Join(dir, "agent.sock"), dir: dir}
	if a.listener, err = net.Listen("unix", a.Socket); err != nil { //nolint:noctx // does not block
		os.RemoveAll(dir)
		return nil, errors.WithStack(err)
	}
	a.wg.Go(func() {
		for {
			conn, err := a.listener.Accept()
			if err != nil {
				return
			}
			a.wg.Go(func() {
				defer conn.Close()
				agent.ServeAgent(keyring, conn)
			})
		}
	})
	return a, nil
}

// Close ends the agent once its clients have disconnected, as they do when the
// daemon stops forwarding it.
func (a *NamedAgent) Close() error {
	err := a.listener.Close()
	a.wg.Wait()
	return errors.WithStack(cmp.Or(err, os.RemoveAll(a.dir)))
}

// AddFirstKey adds the command firstkey to a root filesystem.
func AddFirstKey(ctx context.Context, rootfs string) error {
	root, err := upstream.Root()
	if err != nil {
		return err
	}
	out := filepath.Join(rootfs, "bin", "firstkey")
	return gomod.Build(ctx, root, "./internal/testbed/firstkey", out, "-s -w", []string{"CGO_ENABLED=0", "GOFLAGS="})
}
