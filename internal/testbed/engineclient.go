package testbed

import (
	"context"
	"io"
	"net"
	"runtime"
	"slices"

	"github.com/moby/buildkit/client"
	dockerclient "github.com/moby/moby/client"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// ConnectEngine connects to the BuildKit of an engine at an address, as the docker
// driver of buildx does.
func ConnectEngine(ctx context.Context, addr string) (*client.Client, error) {
	c, err := dockerclient.New(dockerclient.WithHost(addr))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return client.New(ctx, "",
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return c.DialHijack(ctx, "/grpc", "h2c", nil)
		}),
		client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return c.DialHijack(ctx, "/session", proto, meta)
		}),
	)
}

// forward listens on an address in the network namespace of an engine, and forwards
// connections to the same address on this machine.
type forward struct {
	net.Listener
	addr string
}

// Forward lets the engine reach services on the loopback interface of this machine,
// by their addresses.
func (e *Engine) Forward(ctx context.Context, addrs ...string) error {
	for _, addr := range addrs {
		if slices.ContainsFunc(e.forwards, func(f *forward) bool { return f.addr == addr }) {
			continue
		}
		l, err := e.listen(ctx, addr)
		if err != nil {
			return err
		}
		f := &forward{Listener: l, addr: addr}
		e.forwards = append(e.forwards, f)
		go f.serve()
	}
	return nil
}

// listen listens in the network namespace of the engine.
func (e *Engine) listen(ctx context.Context, addr string) (net.Listener, error) {
	pid, err := unix.PidfdOpen(e.containerd.process.cmd.Process.Pid, 0)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer unix.Close(pid)
	var l net.Listener
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		if err = unix.Setns(pid, unix.CLONE_NEWNET); err == nil {
			l, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
		}
	}()
	<-done
	return l, errors.WithStack(err)
}

func (f *forward) serve() {
	for {
		in, err := f.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", f.addr) //nolint:noctx // answers at once
		if err != nil {
			in.Close()
			continue
		}
		for dst, src := range map[net.Conn]net.Conn{in: out, out: in} {
			go func() {
				io.Copy(dst, src)
				dst.Close()
				src.Close()
			}()
		}
	}
}
