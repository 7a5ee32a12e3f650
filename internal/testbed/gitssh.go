package testbed

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/pkg/errors"
)

// GitSSHServer serves the repository of a GitServer over ssh. It starts a process of
// OpenSSH's server for each connection, as inetd does.
type GitSSHServer struct {
	KnownHosts string // line of known_hosts

	host     string
	listener net.Listener
	dir      string
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[*process]struct{}
}

// sshd returns the path of OpenSSH's server, and the environment that it needs. If
// the machine has none, sshd fetches Debian's without installing it, so no service
// starts.
func sshd(ctx context.Context) (path string, env []string, err error) {
	if path, err := exec.LookPath("sshd"); err == nil {
		return path, nil, nil
	}
	dir, err := unpackPackages(ctx, "sshd", "usr/sbin/sshd", []string{"openssh-server"})
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(dir, "usr", "sbin", "sshd"), []string{libraryPath(dir)}, nil
}

// serveScript runs for each connection, with the name of the user whose key the
// server has accepted.
const serveScript = `#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in
"git-upload-pack '/repo.git'"|"git-upload-pack '/only/$1/"*|"git-upload-pack '/only/$1+"*|"git-upload-pack '/only/"*"+$1/"*) ;;
*) echo "ERROR: Repository not found." >&2; exit 128 ;;
esac
exec %s upload-pack %s
`

// sshdScript starts the server with the user and the folder for chroot that it
// expects, without changing the machine.
const sshdScript = `mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd &&
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/shadow" /etc/shadow &&
exec "$2" -i -e -f "$1/sshd_config"
`

// ServeSSH serves the repository over ssh to users with their key. The caller must
// close the server.
func (g *GitServer) ServeSSH(ctx context.Context, users Users) (_ *GitSSHServer, retErr error) {
	bin, env, err := sshd(ctx)
	if err != nil {
		return nil, err
	}
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	dir, err := tempDir("graphload-sshd-")
	if err != nil {
		return nil, err
	}
	s := &GitSSHServer{dir: dir, conns: map[*process]struct{}{}}
	defer func() {
		if retErr != nil {
			s.Close()
		}
	}()
	hostKey := filepath.Join(dir, "host_key")
	if _, err := output(command(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", hostKey)); err != nil {
		return nil, err
	}
	public, err := os.ReadFile(hostKey + ".pub")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	serve := filepath.Join(dir, "serve")
	var keys strings.Builder
	for key, user := range users {
		fmt.Fprintf(&keys, "restrict,command=\"%s %s\" %s\n", serve, user, strings.TrimSpace(key))
	}
	for _, f := range []struct {
		name, content string
		mode          os.FileMode
	}{
		{"serve", fmt.Sprintf(serveScript, git, g.repo()), 0o700},
		{"authorized_keys", keys.String(), 0o600},
		{"passwd", "root:x:0:0:root:/root:/bin/sh\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n", 0o644},
		{"shadow", "root:*:20000:0:99999:7:::\nsshd:*:20000:0:99999:7:::\n", 0o600},
		{"sshd_config", strings.Join([]string{
			"HostKey " + hostKey, "AuthorizedKeysFile " + filepath.Join(dir, "authorized_keys"), "PermitRootLogin forced-commands-only",
			"PidFile none", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel ERROR", "",
		}, "\n"), 0o600},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), f.mode); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil { //nolint:noctx // does not block
		return nil, errors.WithStack(err)
	}
	s.host = s.listener.Addr().String()
	_, port, _ := strings.Cut(s.host, ":")
	s.KnownHosts = "[127.0.0.1]:" + port + " " + strings.TrimSpace(string(public))
	s.wg.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			if err := s.serve(conn, bin, env); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	})
	return s, nil
}

// serve starts a process for a connection.
func (s *GitSSHServer) serve(conn net.Conn, bin string, env []string) error {
	defer conn.Close() // the process has it
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.Errorf("not a TCP connection: %T", conn)
	}
	f, err := tcp.File()
	if err != nil {
		return errors.WithStack(err)
	}
	defer f.Close()
	cmd := exec.Command("/bin/sh", "-c", sshdScript, "sh", s.dir, bin) //nolint:noctx // ended by Close
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	p, err := start(cmd)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.conns[p] = struct{}{}
	s.mu.Unlock()
	s.wg.Go(func() {
		<-p.done
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, p)
	})
	return nil
}

// URL returns the URL of the repository.
func (s *GitSSHServer) URL() string {
	return "ssh://root@" + s.host + "/repo.git"
}

// Private returns a new URL of the repository, which the server serves only to the
// given users.
func (s *GitSSHServer) Private(users ...string) string {
	return "ssh://root@" + s.host + private("/repo.git", users)
}

// Close ends the server and its connections.
func (s *GitSSHServer) Close() error {
	if s.listener != nil {
		s.listener.Close()
	}
	s.mu.Lock()
	for p := range s.conns {
		p.cmd.Process.Kill()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.WithStack(os.RemoveAll(s.dir))
}
