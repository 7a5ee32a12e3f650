package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/testutil"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// freePort returns a free port of the loopback address.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// runLoops bakes the scenarios of the demo with a builder.
func runScenarios(t *testing.T, b *testbed.Builder, runs int) {
	t.Helper()
	for _, scenario := range testbed.DemoScenarios {
		t.Run(b.Version+"/"+scenario.Name, func(t *testing.T) {
			p, err := testbed.NewProject(t.Context(), scenario)
			require.NoError(t, err)
			defer func() { require.NoError(t, p.Close()) }()
			for range runs {
				require.NoError(t, p.Run(t.Context(), b))
			}
			t.Logf("%s with buildx %s: %d/%d", scenario.Name, b.Version, runs, runs)
		})
	}
}

// TestMutualTLS bakes the scenarios over TCP, with a daemon that requires a certificate. The
// daemon answers no call of a client without a certificate, or with one of another
// authority.
func TestMutualTLS(t *testing.T) {
	requireTestbed(t)
	ca, err := testbed.NewAuthority(t.TempDir())
	require.NoError(t, err)
	server, err := ca.Issue("server")
	require.NoError(t, err)
	user, err := ca.Issue("user")
	require.NoError(t, err)
	addr := fmt.Sprintf("tcp://127.0.0.1:%d", freePort(t))
	newDaemon(t, testbed.DaemonOptions{
		Flavor: testbed.Graphload,
		Args:   []string{"--addr", addr, "--tlscacert", ca.Cert, "--tlscert", server.Cert, "--tlskey", server.Key},
	})

	for _, version := range containerBuildx {
		b, err := testbed.NewRemoteBuilder(t.Context(), version, addr, "cacert="+ca.Cert, "cert="+user.Cert, "key="+user.Key)
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close()) }()
		runScenarios(t, b, *containerRuns)
	}

	other, err := testbed.NewAuthority(t.TempDir())
	require.NoError(t, err)
	stranger, err := other.Issue("user")
	require.NoError(t, err)
	dial := func(creds credentials.TransportCredentials) *grpc.ClientConn {
		conn, err := grpc.NewClient(strings.TrimPrefix(addr, "tcp://"), grpc.WithTransportCredentials(creds))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	conn := dial(tlsOf(t, ca, user))
	methods := apiMethods(t, conn)
	for _, method := range []string{"/moby.buildkit.v1.Control/Solve", "/moby.buildkit.v1.Control/Session", "/moby.buildkit.v1.frontend.LLBBridge/Solve"} {
		require.Contains(t, methods, method)
	}
	for name, creds := range map[string]credentials.TransportCredentials{
		"without TLS":                        insecure.NewCredentials(),
		"without a certificate":              tlsOf(t, ca, nil),
		"with one of another authority":      tlsOf(t, ca, stranger),
		"with a server of another authority": tlsOf(t, other, user),
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(creds)
			for _, method := range methods {
				require.Equal(t, codes.Unavailable, status.Code(call(t, conn, method, &emptypb.Empty{})), method)
			}
			t.Logf("%d calls: %v", len(methods), call(t, conn, methods[0], &emptypb.Empty{}))
		})
	}
	// with a certificate, the daemon answers all calls, here that a message is missing
	for _, method := range methods {
		code := status.Code(call(t, conn, method))
		require.NotContains(t, []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Unimplemented}, code, method)
	}
}

// tlsOf returns a configuration that trusts the daemons of an authority, and has the
// certificate of a user if there is one.
func tlsOf(t *testing.T, ca *testbed.Authority, user *testbed.Identity) credentials.TransportCredentials {
	t.Helper()
	dt, err := os.ReadFile(ca.Cert)
	require.NoError(t, err)
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	require.True(t, config.RootCAs.AppendCertsFromPEM(dt))
	if user != nil {
		cert, err := tls.LoadX509KeyPair(user.Cert, user.Key)
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(config)
}

// apiMethods returns all methods that a daemon lists, as /service/method.
func apiMethods(t *testing.T, conn grpc.ClientConnInterface) (methods []string) {
	t.Helper()
	stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	ask := func(req *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
		require.NoError(t, stream.Send(req))
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.Nil(t, resp.GetErrorResponse())
		return resp
	}
	list := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{}})
	for _, listed := range list.GetListServicesResponse().GetService() {
		resp := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: listed.GetName()}})
		for _, dt := range resp.GetFileDescriptorResponse().GetFileDescriptorProto() {
			var fd descriptorpb.FileDescriptorProto
			require.NoError(t, proto.Unmarshal(dt, &fd))
			for _, svc := range fd.GetService() {
				if fd.GetPackage()+"."+svc.GetName() != listed.GetName() {
					continue
				}
				for _, m := range svc.GetMethod() {
					methods = append(methods, "/"+listed.GetName()+"/"+m.GetName())
				}
			}
		}
	}
	return methods
}

// call sends messages to a method and waits for the first answer.
func call(t *testing.T, conn grpc.ClientConnInterface, method string, msgs ...proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangTimeout)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	for _, msg := range msgs {
		if stream.SendMsg(msg) != nil { // RecvMsg returns the error
			break
		}
	}
	_ = stream.CloseSend()
	return stream.RecvMsg(&emptypb.Empty{})
}

// writeUnits writes the systemd units as they are installed.
func writeUnits(t *testing.T, bin string) (service, socket string) {
	t.Helper()
	root, err := upstream.Root()
	require.NoError(t, err)
	dir := t.TempDir()
	prefix := filepath.Join(dir, "prefix")
	require.NoError(t, os.MkdirAll(filepath.Join(prefix, "bin"), 0o755))
	require.NoError(t, os.Symlink(bin, filepath.Join(prefix, "bin", "buildkitd")))
	for _, name := range []string{"buildkit.service", "buildkit.socket"} {
		dt, err := os.ReadFile(filepath.Join(root, "packaging", "systemd", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), bytes.ReplaceAll(dt, []byte("@PREFIX@"), []byte(prefix)), 0o600))
	}
	return filepath.Join(dir, "buildkit.service"), filepath.Join(dir, "buildkit.socket")
}

// TestSystemdUnits lets systemd check the units.
func TestSystemdUnits(t *testing.T) {
	analyze := testutil.RequireCommand(t, "systemd-analyze")
	bin, err := testbed.Binary(testbed.Graphload, "buildkitd")
	require.NoError(t, err)
	service, socket := writeUnits(t, bin)
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", service, socket).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out), "warnings")

	// a user who may write to the socket is as good as root
	dt, err := os.ReadFile(socket)
	require.NoError(t, err)
	require.Equal(t, []string{"SocketMode=0660"}, regexp.MustCompile(`(?m)^Socket(?:Mode|User|Group)=.*$`).FindAllString(string(dt), -1))
}

// listens returns the paths and local addresses, as in proc(5), on which a process listens.
// It finds the process by one of its sockets.
func listens(t *testing.T, socket string) (out []string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	require.NoError(t, err)
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	require.NoError(t, err)
	var peer *unix.Ucred
	var peerErr error
	require.NoError(t, raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }))
	require.NoError(t, peerErr)

	proc := filepath.Join("/proc", strconv.Itoa(int(peer.Pid)))
	open := map[string]bool{}
	fds, err := filepath.Glob(filepath.Join(proc, "fd", "*"))
	require.NoError(t, err)
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil { // some have been closed
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				open[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	const acceptsUnix, listensTCP = "00010000", "0A"
	for _, table := range []struct {
		name                  string
		address, state, inode int // columns
		listening             string
	}{{"unix", 7, 3, 6, acceptsUnix}, {"tcp", 1, 3, 9, listensTCP}, {"tcp6", 1, 3, 9, listensTCP}} {
		dt, err := os.ReadFile(filepath.Join(proc, "net", table.name))
		require.NoError(t, err)
		for line := range strings.Lines(string(dt)) {
			cols := strings.Fields(line)
			if len(cols) > max(table.inode, table.address) && cols[table.state] == table.listening && open[cols[table.inode]] {
				out = append(out, cols[table.address])
			}
		}
	}
	return out
}

// TestSocketActivation passes a socket to the daemon, which the first connection starts, as
// buildkit.socket does.
func TestSocketActivation(t *testing.T) {
	requireTestbed(t)
	activate := testutil.RequireCommand(t, "systemd-socket-activate")
	for _, flavor := range testbed.Flavors {
		t.Run(string(flavor), func(t *testing.T) {
			a, err := testbed.StartActivated(t.Context(), activate, flavor)
			require.NoError(t, err)
			defer func() {
				if t.Failed() {
					t.Log(a.Log())
				}
				require.NoError(t, a.Close())
			}()
			require.NotContains(t, a.Log(), "found worker", "nothing runs before a client connects")

			c, err := client.New(t.Context(), a.Addr)
			require.NoError(t, err)
			defer c.Close()
			start := time.Now()
			info, err := c.Info(t.Context())
			require.NoError(t, err)
			t.Logf("%s answered after %s", info.BuildkitVersion.Version, time.Since(start).Round(time.Millisecond))
			socket := strings.TrimPrefix(a.Addr, "unix://")
			require.ElementsMatch(t, []string{socket, filepath.Join(filepath.Dir(socket), "otel.sock")}, listens(t, socket), "there is no debug address by default")
			if flavor == testbed.Upstream {
				return
			}
			b, err := testbed.NewRemoteBuilder(t.Context(), "v0.29.1", a.Addr)
			require.NoError(t, err)
			defer func() { require.NoError(t, b.Close()) }()
			runScenarios(t, b, 1)
		})
	}
}

// bootScript makes the machine's files and a folder of changes to them the root of a
// systemd, which runs as the first process of new namespaces. Its changes are in memory and
// disappear with the mounts, except for the state of the daemon. It cannot change the
// kernel, and it sees no units of /etc.
const bootScript = `set -e
mount --make-rprivate /
cd "$1"
mount -t tmpfs -o mode=755 tmpfs mem
mkdir mem/upper mem/work mem/root
mount -t overlay -o lowerdir=/,upperdir=mem/upper,workdir=mem/work overlay mem/root
root=$PWD/mem/root
cp -a files/. "$root"
mkdir -p "$root/var/lib/buildkit" "$root/etc/systemd/system" "$root/old"
mount --bind state "$root/var/lib/buildkit"
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for dir in dev run tmp var/log etc/systemd/system; do
	mount -t tmpfs -o mode=755 tmpfs $dir
done
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /dev/null etc/systemd/system/systemd-modules-load.service
rm -f etc/machine-id
: > etc/machine-id
pivot_root . old
umount -l /old
exec env -i container=graphload PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$2" --unit=basic.target --log-target=console --show-status=no
`

// systemd is a systemd that runs as the first process of new namespaces.
type systemd struct {
	cgroup string
	log    string

	cmd  *exec.Cmd
	done chan struct{}
}

// bootSystemd boots a machine with added files. The machine ends with the test.
func bootSystemd(t *testing.T, init string, files func(root string)) *systemd {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"files", "state", "mem"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	files(filepath.Join(dir, "files"))
	hierarchy := "/sys/fs/cgroup"
	if _, err := os.Stat(hierarchy + "/cgroup.procs"); err != nil {
		hierarchy += "/unified" // next to the hierarchies of version 1
	}
	s := &systemd{
		cgroup: filepath.Join(hierarchy, "graphload-"+strings.ToLower(rand.Text())),
		log:    filepath.Join(dir, "log"), done: make(chan struct{}),
	}
	require.NoError(t, os.Mkdir(s.cgroup, 0o755))
	testbed.OnAbort(s.close)
	t.Cleanup(func() {
		if t.Failed() {
			dt, _ := os.ReadFile(s.log)
			t.Logf("log of systemd:\n%s", dt)
			if s.cmd.Process != nil {
				out, err := s.run(context.WithoutCancel(t.Context()), "journalctl", "--no-pager", "-u", "buildkit.service", "-n", "60")
				t.Logf("log of the daemon: %v\n%s", err, out)
			}
		}
		require.NoError(t, s.close())
	})
	cgroup, err := os.Open(s.cgroup)
	require.NoError(t, err)
	defer cgroup.Close()
	log, err := os.Create(s.log)
	require.NoError(t, err)
	defer log.Close()
	// the root of a cgroup namespace is the cgroup of the process that creates it
	s.cmd = exec.Command("unshare", "--cgroup", "sh", "-c", bootScript, "sh", dir, init) //nolint:noctx // ended by close
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true, Pdeathsig: syscall.SIGKILL,
	}
	started := make(chan error)
	go func() {
		// Pdeathsig refers to the thread that starts the process
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // it was killed
		}
		close(s.done)
	}()
	require.NoError(t, <-started)
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		out, err := s.run(t.Context(), "systemctl", "is-active", "basic.target")
		require.NoError(ct, err, out)
	}, time.Minute, 200*time.Millisecond, "it does not boot")
	return s
}

// run runs a command in the machine and returns what it printed.
func (s *systemd) run(ctx context.Context, args ...string) (string, error) {
	enter := []string{"--target", strconv.Itoa(s.cmd.Process.Pid), "--all", "--root", "--wd"}
	dt, err := exec.CommandContext(ctx, "nsenter", append(enter, args...)...).CombinedOutput()
	return strings.TrimSpace(string(dt)), errors.Wrapf(err, "%s: %s", strings.Join(args, " "), dt)
}

// path returns the path of a file of the machine.
func (s *systemd) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "root", name)
}

// steps returns the cgroups of running steps below the one of the daemon.
func (s *systemd) steps() (dirs []string) {
	found, _ := filepath.Glob(filepath.Join(s.cgroup, "system.slice/buildkit.service/buildkit/*/cgroup.procs"))
	for _, procs := range found {
		if dt, err := os.ReadFile(procs); err == nil && len(dt) > 0 {
			dirs = append(dirs, filepath.Dir(procs))
		}
	}
	return dirs
}

// close ends all processes of the machine and removes their cgroups.
func (s *systemd) close() error {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill() // when the first process ends, all others do
		<-s.done
	}
	deadline := time.Now().Add(hangTimeout)
	for {
		var dirs []string
		err := filepath.WalkDir(s.cgroup, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil //nolint:nilerr // cgroups can vanish during the walk
		})
		for _, dir := range slices.Backward(dirs) {
			err = os.Remove(dir)
		}
		if len(dirs) == 0 || err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.WithStack(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestDockerSystemd installs the daemon on a machine with a real systemd, and builds with
// it.
func TestDockerSystemd(t *testing.T) {
	requireTestbed(t)
	if !*dockerTests {
		t.Skip("takes long: run graphload docker")
	}
	for _, name := range []string{"unshare", "nsenter", "pivot_root"} {
		testutil.RequireCommand(t, name)
	}
	init := testutil.RequireCommand(t, "systemd")
	root, err := upstream.Root()
	require.NoError(t, err)
	s := bootSystemd(t, init, func(files string) {
		install := exec.CommandContext(t.Context(), "go", "run", "-buildvcs=false", "./cmd/graphload", "install", "--no-build", "--destdir", files)
		install.Dir = root
		out, err := install.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.NoError(t, testbed.WriteRootfs(filepath.Join(files, "srv/context/rootfs")))
		for name, content := range map[string]string{
			"srv/context/Dockerfile": "FROM scratch\nCOPY rootfs /\nARG SLEEP=0\n" +
				"RUN --network=none --mount=type=secret,id=token sleep $SLEEP && cp /run/secrets/token /copy\n",
			"srv/token": "the secret",
		} {
			require.NoError(t, os.WriteFile(filepath.Join(files, name), []byte(content), 0o600))
		}
	})
	run := func(args ...string) string {
		t.Helper()
		out, err := s.run(t.Context(), args...)
		require.NoError(t, err)
		return out
	}
	build := func(args ...string) []string {
		return append([]string{
			"buildctl", "build", "--progress", "plain", "--frontend", "dockerfile.v0",
			"--local", "context=/srv/context", "--local", "dockerfile=/srv/context", "--secret", "id=token,src=/srv/token",
		}, args...)
	}
	inactive := func(unit string) {
		t.Helper()
		out, err := s.run(t.Context(), "systemctl", "is-active", unit)
		require.Error(t, err, unit)
		require.Equal(t, "inactive", out)
	}

	// the first connection starts the daemon
	run("systemctl", "enable", "--now", "buildkit.socket")
	require.Equal(t, "660 root root\n755 root root", run("stat", "-c", "%a %U %G", "/run/buildkit/buildkitd.sock", "/run/buildkit"))
	inactive("buildkit.service")
	require.Contains(t, run("buildctl", "debug", "info"), "+graphload")
	require.Equal(t, "active", run("systemctl", "is-active", "buildkit.service"))
	require.Equal(t, "700 root root", run("stat", "-c", "%a %U %G", "/var/lib/buildkit"))

	run(build("--output", "type=local,dest=/srv/out")...)
	require.Equal(t, "the secret", run("cat", "/srv/out/copy"))

	// the unit protects these from the daemon
	pid := run("systemctl", "show", "--property=MainPID", "--value", "buildkit.service")
	inDaemon := func(args ...string) (string, error) {
		return s.run(t.Context(), append([]string{"nsenter", "--target", pid, "--mount"}, args...)...)
	}
	for _, dir := range []string{"/", "/usr", "/etc", "/var", "/srv", "/boot"} {
		run("touch", dir+"/file")
		_, err := inDaemon("touch", dir+"/file")
		require.ErrorContains(t, err, "Read-only file system")
	}
	for _, dir := range []string{"/var/lib/buildkit", "/var/lib/cni", "/run", "/tmp"} {
		_, err := inDaemon("touch", dir+"/file")
		require.NoError(t, err)
	}
	_, err = s.run(t.Context(), "stat", "/tmp/file")
	require.ErrorContains(t, err, "No such file", "the daemon has a private /tmp")
	run("touch", "/root/file", "/home/file")
	for _, dir := range []string{"/root", "/home"} {
		out, err := inDaemon("ls", "-A", dir)
		require.NoError(t, err)
		require.Empty(t, out)
	}
	caps, err := os.ReadFile(s.path("/proc/" + pid + "/status"))
	require.NoError(t, err)
	for name, n := range map[string]int{"CAP_SYS_MODULE": unix.CAP_SYS_MODULE, "CAP_SYSLOG": unix.CAP_SYSLOG} {
		var effective uint64
		_, line, _ := strings.Cut(string(caps), "CapEff:")
		_, err := fmt.Sscanf(line, "%x", &effective)
		require.NoError(t, err)
		require.Zero(t, effective&(1<<n), name)
	}

	// steps in cgroups below the service's cgroup end with the service
	require.NoError(t, os.MkdirAll(s.path("/etc/buildkit"), 0o755))
	require.NoError(t, os.WriteFile(s.path("/etc/buildkit/buildkitd.toml"), []byte("[worker.oci]\ndefaultCgroupParent = \"/system.slice/buildkit.service\"\n"), 0o600))
	require.NoError(t, os.MkdirAll(s.path("/etc/systemd/system/buildkit.service.d"), 0o755))
	require.NoError(t, os.WriteFile(s.path("/etc/systemd/system/buildkit.service.d/timeout.conf"), []byte("[Service]\nTimeoutStopSec=2\n"), 0o600))
	run("systemctl", "daemon-reload")
	run("systemctl", "restart", "buildkit.service")
	ended := make(chan error, 1)
	go func() {
		_, err := s.run(t.Context(), build("--opt", "build-arg:SLEEP=1000")...)
		ended <- err
	}()
	require.Eventually(t, func() bool { return len(s.steps()) == 1 }, time.Minute, 20*time.Millisecond, "the step does not run")
	run("systemctl", "restart", "buildkit.service")
	require.Error(t, <-ended)
	require.Empty(t, s.steps())

	require.Contains(t, run(build("--output", "type=local,dest=/srv/again")...), "CACHED", "the state is kept")
	require.Equal(t, "the secret", run("cat", "/srv/again/copy"))

	// another process ends the daemon
	pid = run("systemctl", "show", "--property=MainPID", "--value", "buildkit.service")
	run("kill", pid)
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		now, err := s.run(t.Context(), "systemctl", "show", "--property=MainPID,ActiveState", "buildkit.service")
		require.NoError(ct, err)
		require.Contains(ct, now, "ActiveState=active")
		require.NotContains(ct, now, "MainPID="+pid+"\n")
	}, time.Minute, 100*time.Millisecond, "it is not started again")

	run("systemctl", "disable", "--now", "buildkit.socket")
	run("systemctl", "stop", "buildkit.service")
	inactive("buildkit.service") // and not failed
	_, err = s.run(t.Context(), "stat", "/run/buildkit/buildkitd.sock")
	require.ErrorContains(t, err, "No such file")

	require.NoError(t, os.WriteFile(s.path("/etc/buildkit/buildkitd.toml"), []byte("no toml"), 0o600))
	_, err = s.run(t.Context(), "systemctl", "start", "buildkit.service")
	require.ErrorContains(t, err, "buildkit.service failed", "a daemon that is not ready is not started")
}
