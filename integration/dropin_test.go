package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/graphload/graphload/internal/upstream"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	apicapspb "github.com/moby/buildkit/util/apicaps/pb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// addedCap is the capability that tells clients of the change.
const addedCap = "gateway.solve.load"

// addedDebug are answers of debug handlers that upstream does not have.
var addedDebug = map[string]string{
	"GET /debug/graph":                                    "200 application/json",
	"metric buildkit_graphload_chains gauge":              "",
	"metric buildkit_graphload_definitions_total counter": "",
	"metric buildkit_graphload_lookups_total counter":     "",
	"metric buildkit_graphload_vertices_owned gauge":      "",
}

// TestDropIn compares the binaries with upstream's. Only three things may differ: the
// version, the capability of the change, and what the debug address shows of it.
func TestDropIn(t *testing.T) {
	requireTestbed(t)
	t.Run("help", testDropInHelp)
	unmodified, ours := sources(t)
	t.Run("config keys", func(t *testing.T) { testDropInConfigKeys(t, unmodified, ours) })
	t.Run("exit codes", testDropInExitCodes)
	t.Run("stop", testDropInStop)
	t.Run("defaults", testDropInDefaults)

	up := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Upstream})
	gl := newDaemon(t, testbed.DaemonOptions{Flavor: testbed.Graphload})
	t.Run("services", func(t *testing.T) { requireSame(t, services(t, up), services(t, gl)) })
	t.Run("debug endpoints", func(t *testing.T) {
		patterns := debugPatterns(t, unmodified)
		require.Contains(t, patterns, "/metrics")
		require.Contains(t, patterns, "GET /debug/flight/trace")
		require.ElementsMatch(t, append(slices.Clip(patterns), "GET /debug/graph"), debugPatterns(t, ours))
		want, got := debugEndpoints(t, up, patterns), debugEndpoints(t, gl, patterns)
		require.Equal(t, "404 text/plain; charset=utf-8", want["GET /debug/graph"])
		maps.Copy(want, addedDebug)
		require.Equal(t, want, got)
	})
	t.Run("capabilities", func(t *testing.T) {
		want, got := capabilities(t, up), capabilities(t, gl)
		require.NotContains(t, want, addedCap)
		require.Contains(t, got[addedCap], "enabled true, deprecated false")
		delete(got, addedCap)
		requireSame(t, want, got)
	})
}

// requireSame compares the findings about upstream's daemon and ours.
func requireSame(t *testing.T, want, got map[string]string) {
	t.Helper()
	require.NotEmpty(t, want)
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	for key := range want {
		require.Equal(t, want[key], got[key], key)
	}
}

// versionOf returns the fields of --version: name, package, version, revision.
func versionOf(t *testing.T, bin string) []string {
	t.Helper()
	dt, err := exec.CommandContext(t.Context(), bin, "--version").Output()
	require.NoError(t, err)
	fields := strings.Fields(string(dt))
	require.GreaterOrEqual(t, len(fields), 3, "%s", dt)
	return fields
}

var (
	logTime    = regexp.MustCompile(`time="[^"]*"`)
	sourceLine = regexp.MustCompile(`\.go:\d+`) // seams move the lines that follow them
	workerID   = regexp.MustCompile(`\\"[a-z0-9]{25}\\"`)
)

// normalize replaces the parts that name the binary or the run.
func normalize(t *testing.T, bin, out string, temporary ...string) string {
	t.Helper()
	version := versionOf(t, bin)[1:]
	out = strings.ReplaceAll(out, " \n", "\n") // upstream's binary has no revision
	out = strings.ReplaceAll(out, strings.Join(version, " "), "<version>")
	for _, field := range version[1:] {
		out = strings.ReplaceAll(out, field, "<version>")
	}
	for _, s := range append(temporary, filepath.Dir(bin)) {
		out = strings.ReplaceAll(out, s, "<folder>")
	}
	out = workerID.ReplaceAllString(logTime.ReplaceAllString(out, "time=<time>"), "<worker>")
	return sourceLine.ReplaceAllString(out, ".go")
}

func testDropInHelp(t *testing.T) {
	for _, name := range []string{"buildkitd", "buildctl"} {
		var all []map[string]string
		for _, flavor := range testbed.Flavors {
			bin, err := testbed.Binary(flavor, name)
			require.NoError(t, err)
			all = append(all, help(t, bin))
		}
		require.Contains(t, all[0][""], "USAGE")
		requireSame(t, all[0], all[1])
		if name == "buildctl" {
			require.Contains(t, all[0]["debug histories"], "list build records")
		}
	}
}

// helpCommands matches the lines of a help text that name commands.
var helpCommands = regexp.MustCompile(`(?m)^COMMANDS:\n((?:   .*\n)+)`)

// help returns the help texts of a binary and of the commands that they name.
func help(t *testing.T, bin string, command ...string) map[string]string {
	t.Helper()
	dt, err := exec.CommandContext(t.Context(), bin, append(command, "--help")...).Output()
	require.NoError(t, err)
	out := map[string]string{strings.Join(command, " "): normalize(t, bin, string(dt))}
	if m := helpCommands.FindSubmatch(dt); m != nil {
		for line := range strings.Lines(string(m[1])) {
			sub := strings.Trim(strings.Fields(line)[0], ",")
			if sub != "help" {
				maps.Copy(out, help(t, bin, append(slices.Clone(command), sub)...))
			}
		}
	}
	return out
}

// testDropInConfigKeys compares the fields of buildkitd.toml, with their types
// and tags, in the sources that the binaries are built from.
func testDropInConfigKeys(t *testing.T, unmodified, ours source) {
	want := configKeys(t, unmodified, "cmd/buildkitd/config")
	for _, key := range []string{
		"cmd/buildkitd/config: GRPCConfig.DebugAddress string `toml:\"debugAddress\"`",
		"util/resolver/config: RegistryConfig.Insecure *bool `toml:\"insecure\"`",
	} {
		require.Contains(t, want, key)
	}
	require.Equal(t, want, configKeys(t, ours, "cmd/buildkitd/config"))
}

// source returns the files of Go code, without the tests, in a folder of a tree.
type source func(dir string) map[string][]byte

// sources returns the sources of upstream's tree and ours.
func sources(t *testing.T) (unmodified, ours source) {
	t.Helper()
	bin, err := testbed.Binary(testbed.Upstream, "buildkitd")
	require.NoError(t, err)
	root, err := upstream.Root()
	require.NoError(t, err)
	tree, err := assemble.Plan(t.Context(), assemble.Options{Root: root, Version: versionOf(t, bin)[2]})
	require.NoError(t, err)
	code := func(name string) bool { return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") }
	unmodified = func(dir string) map[string][]byte {
		files := map[string][]byte{}
		names, err := filepath.Glob(filepath.Join(tree.Upstream.Dir, dir, "*"))
		require.NoError(t, err)
		for _, name := range names {
			if code(name) {
				files[filepath.Base(name)], err = os.ReadFile(name)
				require.NoError(t, err)
			}
		}
		return files
	}
	return unmodified, func(dir string) map[string][]byte {
		files := unmodified(dir)
		for rel, dt := range tree.Changed {
			if path.Dir(rel) == dir && code(rel) {
				files[path.Base(rel)] = dt
			}
		}
		for _, rel := range tree.Added {
			if path.Dir(rel) == dir && code(rel) {
				files[path.Base(rel)], err = os.ReadFile(filepath.Join(root, rel))
				require.NoError(t, err)
			}
		}
		return files
	}
}

// configKeys returns the fields of the structs in a package, and in the packages of
// BuildKit that define their types.
func configKeys(t *testing.T, src source, pkg string) []string {
	t.Helper()
	fset := token.NewFileSet()
	keys, seen := map[string]struct{}{}, map[string]struct{}{}
	var add func(pkg string)
	add = func(pkg string) {
		if _, ok := seen[pkg]; ok {
			return
		}
		seen[pkg] = struct{}{}
		for name, dt := range src(pkg) {
			f, err := parser.ParseFile(fset, name, dt, parser.SkipObjectResolution)
			require.NoError(t, err)
			imports := map[string]string{}
			for _, imp := range f.Imports {
				importPath, err := strconv.Unquote(imp.Path.Value)
				require.NoError(t, err)
				local := path.Base(importPath)
				if imp.Name != nil {
					local = imp.Name.Name
				}
				imports[local] = importPath
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.TypeSpec)
				if !ok {
					return true
				}
				ast.Inspect(spec.Type, func(n ast.Node) bool {
					sel, ok := n.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					if x, ok := sel.X.(*ast.Ident); ok {
						if dir, ok := strings.CutPrefix(imports[x.Name], upstream.Module+"/"); ok {
							add(dir)
						}
					}
					return false
				})
				for _, key := range fields(t, fset, spec) {
					keys[pkg+": "+key] = struct{}{}
				}
				return true
			})
		}
	}
	add(pkg)
	return slices.Sorted(maps.Keys(keys))
}

// fields returns the fields of a struct with their types and tags, and any other type
// unchanged.
func fields(t *testing.T, fset *token.FileSet, spec *ast.TypeSpec) (out []string) {
	t.Helper()
	text := func(n ast.Node) string {
		var b bytes.Buffer
		require.NoError(t, printer.Fprint(&b, fset, n))
		return b.String()
	}
	st, ok := spec.Type.(*ast.StructType)
	if !ok {
		return []string{spec.Name.Name + " " + text(spec.Type)}
	}
	for _, field := range st.Fields.List {
		tag := ""
		if field.Tag != nil {
			tag = field.Tag.Value
		}
		for _, id := range append(field.Names, nil)[:max(1, len(field.Names))] {
			key := spec.Name.Name
			if id != nil {
				key += "." + id.Name
			}
			out = append(out, strings.TrimSpace(key+" "+text(field.Type)+" "+tag))
		}
	}
	return out
}

func testDropInExitCodes(t *testing.T) {
	write := func(content string) string {
		name := filepath.Join(t.TempDir(), "buildkitd.toml")
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
		return name
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"version", []string{"--version"}, 0},
		{"unknown flag", []string{"--no-such-flag"}, 1},
		{"wrong value", []string{"--oci-worker-gc-keepstorage"}, 1},
		{"config that is no TOML", []string{"--config", write("no table")}, 1},
		{"unknown key", []string{"--config", write("nosuchkey = 1\n[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = false\n")}, 1},
		{"no worker", []string{"--oci-worker=false", "--containerd-worker=false"}, 1},
		{"address without scheme", []string{"--addr", "nothing"}, 1},
		{"address in use", []string{"--addr", "tcp://" + taken.Addr().String()}, 1},
		{"unknown entitlement", []string{"--allow-insecure-entitlement", "no.such", "--containerd-worker=false", "--oci-worker-net=host", "--cdi-disabled=true"}, 1},
		{"unreadable certificate", []string{"--tlscert", "/no/such/cert", "--tlskey", "/no/such/key"}, 1},
		{"unknown network", []string{"--oci-worker-net=nosuch", "--containerd-worker=false", "--cdi-disabled=true"}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var outs []string
			for _, flavor := range testbed.Flavors {
				bin, err := testbed.Binary(flavor, "buildkitd")
				require.NoError(t, err)
				dir := t.TempDir()
				args := tc.args
				if !slices.Contains(args, "--addr") {
					args = append(args, "--addr", "unix://"+filepath.Join(dir, "s"))
				}
				if tc.name == "wrong value" {
					args = []string{tc.args[0], "many"}
				}
				args = append([]string{"--root", filepath.Join(dir, "root"), "--otel-socket-path", filepath.Join(dir, "otel.sock")}, args...)
				outs = append(outs, normalize(t, bin, exits(t, tc.code, bin, args...), dir))
			}
			require.Equal(t, outs[0], withoutStartLine(outs[1]))
		})
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"buildctl without a command", nil, 0},
		{"buildctl with an unknown command", []string{"nosuch"}, 3},
		{"buildctl with an unknown flag", []string{"build", "--nosuch"}, 1},
		{"buildctl without a daemon", []string{"--addr", "unix:///no/such/socket", "--timeout", "1", "debug", "workers"}, 1},
		{"buildctl with a wrong output", []string{"build", "--frontend", "dockerfile.v0", "--output", "nothing"}, 1},
		{"buildctl with a secret that is not there", []string{"build", "--frontend", "dockerfile.v0", "--secret", "id=a,src=/no/such/file"}, 1},
		{"buildctl with input that is no LLB", []string{"debug", "dump-llb", "/dev/null"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var outs []string
			for _, flavor := range testbed.Flavors {
				bin, err := testbed.Binary(flavor, "buildctl")
				require.NoError(t, err)
				outs = append(outs, normalize(t, bin, exits(t, tc.code, bin, tc.args...)))
			}
			require.Equal(t, outs[0], outs[1])
		})
	}
}

// exits runs a command that ends by itself with the exit code, and returns its output.
func exits(t *testing.T, code int, bin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangTimeout) // it might go on
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.WaitDelay = time.Minute
	dt, err := cmd.CombinedOutput()
	if err != nil {
		var exitErr *exec.ExitError
		require.ErrorAs(t, err, &exitErr)
	}
	require.Equal(t, code, cmd.ProcessState.ExitCode(), "%s: %s", bin, dt)
	return string(dt)
}

// withoutStartLine removes the line that says which behavior the daemon has.
func withoutStartLine(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "lazy solves are loaded into the build graph") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// plainDaemon returns the command of a daemon with its state and sockets in dir and
// otherwise the default configuration, and the address that it listens on. It does not
// use a containerd of the machine.
func plainDaemon(t *testing.T, flavor testbed.Flavor, dir, socket string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	bin, err := testbed.Binary(flavor, "buildkitd")
	require.NoError(t, err)
	addr := "unix://" + filepath.Join(dir, socket)
	args = append([]string{"--root", filepath.Join(dir, "root"), "--addr", addr, "--otel-socket-path", filepath.Join(dir, "otel"+socket), "--containerd-worker=false"}, args...)
	return exec.CommandContext(t.Context(), bin, args...), addr
}

// startPlain starts the command, and returns a client when the daemon listens. The end
// of the test ends what is left of it.
func startPlain(t *testing.T, cmd *exec.Cmd, addr string) *client.Client {
	t.Helper()
	// mounts of the daemon end with it
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	require.NoError(t, cmd.Start())
	testbed.OnAbort(func() error { return cmd.Process.Kill() })
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		cmd.Wait()                          //nolint:errcheck
	})
	c, err := client.New(t.Context(), addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), hangTimeout)
	defer cancel()
	require.NoError(t, c.Wait(ctx))
	return c
}

// testDropInStop compares how daemons end: when they are stopped, and when another
// daemon uses their root.
func testDropInStop(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			var codes []string
			for _, flavor := range testbed.Flavors {
				dir := t.TempDir()
				args := []string{"--oci-worker-net=host", "--oci-worker-snapshotter=native", "--cdi-disabled=true"}
				first, addr := plainDaemon(t, flavor, dir, "first", args...)
				startPlain(t, first, addr)

				second, _ := plainDaemon(t, flavor, dir, "second", args...)
				dt, _ := second.CombinedOutput()
				require.Contains(t, string(dt), "could not lock", "%s", flavor)

				require.NoError(t, first.Process.Signal(sig))
				late := time.AfterFunc(hangTimeout, func() {
					t.Errorf("%s did not end within %s of %s", flavor, hangTimeout, sig)
					first.Process.Kill()
				})
				first.Wait()
				late.Stop()
				codes = append(codes, fmt.Sprintf("second %d, first %d", second.ProcessState.ExitCode(), first.ProcessState.ExitCode()))
			}
			require.Equal(t, codes[0], codes[1])
		})
	}
}

// testDropInDefaults compares the effect of the default configuration: on the worker
// (snapshotter, network, platforms, devices, garbage collection), on the socket, and on
// what builds may ask for (frontends and entitlements).
func testDropInDefaults(t *testing.T) {
	var found []map[string]string
	for _, flavor := range testbed.Flavors {
		cmd, addr := plainDaemon(t, flavor, t.TempDir(), "s")
		c := startPlain(t, cmd, addr)
		infos, err := c.ListWorkers(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, 1, "%s", flavor)
		w := infos[0]
		require.NotEmpty(t, w.GCPolicy, "%s collects garbage", flavor)
		out := map[string]string{
			"platforms": fmt.Sprint(w.Platforms),
			"gc policy": fmt.Sprintf("%+v", w.GCPolicy),
			"devices":   fmt.Sprint(w.CDIDevices),
		}
		for k, v := range w.Labels {
			out["label "+k] = v
		}
		info, err := os.Stat(strings.TrimPrefix(addr, "unix://"))
		require.NoError(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		out["socket"] = fmt.Sprintf("%s %d:%d", info.Mode(), stat.Uid, stat.Gid)
		for _, frontend := range []string{"dockerfile.v0", "gateway.v0", "nosuch.v0"} {
			_, err := c.Solve(t.Context(), nil, client.SolveOpt{Frontend: frontend}, nil)
			out["frontend "+frontend] = fmt.Sprint(err)
		}
		for _, e := range []string{"", "network.host", "security.insecure", "device"} {
			opt := client.SolveOpt{}
			if e != "" {
				opt.AllowedEntitlements = []string{e}
			}
			def, err := llb.Scratch().File(llb.Mkfile("/f", 0o600, nil)).Marshal(t.Context())
			require.NoError(t, err)
			_, err = c.Solve(t.Context(), def, opt, nil)
			out["entitlement "+e] = fmt.Sprint(err)
		}
		found = append(found, out)
	}
	require.Contains(t, found[0], "label org.mobyproject.buildkit.worker.snapshotter")
	require.Contains(t, found[0]["frontend nosuch.v0"], "invalid frontend")
	require.Equal(t, "<nil>", found[0]["entitlement "])
	require.Contains(t, found[0]["entitlement network.host"], "not allowed")
	requireSame(t, found[0], found[1])
}

// services returns the descriptors of all gRPC services, by file.
func services(t *testing.T, d *testbed.Daemon) map[string]string {
	conn, err := grpc.NewClient(d.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	ask := func(req *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
		require.NoError(t, stream.Send(req))
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.Nil(t, resp.GetErrorResponse(), "%v", req)
		return resp
	}
	out := map[string]string{}
	list := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{}})
	for _, svc := range list.GetListServicesResponse().Service {
		resp := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: svc.Name}})
		out["service "+svc.Name] = ""
		for _, dt := range resp.GetFileDescriptorResponse().FileDescriptorProto {
			var fd descriptorpb.FileDescriptorProto
			require.NoError(t, proto.Unmarshal(dt, &fd))
			out["file "+fd.GetName()] = fd.String()
		}
	}
	require.Contains(t, out, "service moby.buildkit.v1.Control")
	require.Contains(t, out, "service moby.buildkit.v1.frontend.LLBBridge")
	return out
}

var (
	debugPattern = regexp.MustCompile(`^(?:([A-Z]+) )?(/\S*)$`)
	metricName   = regexp.MustCompile(`(?m)^# TYPE (\S+ \S+)$`)
)

// debugPatterns returns the patterns that the daemon passes to Handle and HandleFunc,
// with the values of constants in them.
func debugPatterns(t *testing.T, src source) (patterns []string) {
	t.Helper()
	fset, consts := token.NewFileSet(), map[string]string{}
	// value returns the value of a literal, a constant or their sum
	var value func(e ast.Expr) (string, bool)
	value = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			s, err := strconv.Unquote(e.Value)
			return s, e.Kind == token.STRING && err == nil
		case *ast.Ident:
			s, ok := consts[e.Name]
			return s, ok
		case *ast.BinaryExpr:
			x, ok := value(e.X)
			y, ok2 := value(e.Y)
			return x + y, ok && ok2 && e.Op == token.ADD
		}
		return "", false
	}
	files := src("cmd/buildkitd")
	for _, name := range slices.Sorted(maps.Keys(files)) { // in this order, upstream's files define constants before they use them
		f, err := parser.ParseFile(fset, name, files[name], parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if s, ok := value(v); ok {
						consts[n.Names[i].Name] = s
					}
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Handle" && sel.Sel.Name != "HandleFunc" {
					break
				}
				pattern, ok := value(n.Args[0])
				require.True(t, ok, "%s: a pattern that is not understood", fset.Position(n.Pos()))
				patterns = append(patterns, pattern)
			}
			return true
		})
	}
	return patterns
}

// debugClient asks the debug handlers of the daemon, with any host in the URL.
func debugClient(t *testing.T, d *testbed.Daemon) *http.Client {
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.DebugAddr)
	}}}
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

// debugEndpoints sends requests to the debug handlers with these patterns, and to the
// added one.
func debugEndpoints(t *testing.T, d *testbed.Daemon, patterns []string) map[string]string {
	hc := debugClient(t, d)
	out := map[string]string{}
	ask := func(method, url string) (answer, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://debug"+url, nil)
		require.NoError(t, err)
		resp, err := hc.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		dt, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type")), string(dt)
	}
	for _, url := range []string{"/no/such/handler", "/debug/graph"} {
		out["GET "+url], _ = ask(http.MethodGet, url)
	}
	for _, pattern := range patterns {
		m := debugPattern.FindStringSubmatch(pattern)
		require.NotNil(t, m, "pattern %q", pattern)
		method, url := m[1], m[2]
		if method == "" {
			method = http.MethodGet
		}
		switch url {
		case "/debug/pprof/profile", "/debug/pprof/trace":
			url += "?seconds=1"
		}
		answer, body := ask(method, url)
		out[method+" "+url] = answer
		if url == "/debug/vars" {
			var vars map[string]any
			require.NoError(t, json.Unmarshal([]byte(body), &vars))
			out["vars"] = fmt.Sprint(slices.Sorted(maps.Keys(vars)))
		}
		if url == "/metrics" {
			for _, m := range metricName.FindAllStringSubmatch(body, -1) {
				out["metric "+m[1]] = ""
			}
		}
	}
	// the answers of the flight recorder depend on whether it runs
	var flight []string
	for _, step := range []string{"POST /set_period?period=1s", "POST /start", "POST /start", "POST /set_period?period=1s", "GET ", "POST /stop", "POST /stop", "GET "} {
		method, rest, _ := strings.Cut(step, " ")
		answer, _ := ask(method, "/debug/flight/trace"+rest)
		flight = append(flight, step+" "+answer)
	}
	require.Contains(t, flight, "GET  200 application/octet-stream")
	out["flight recorder"] = strings.Join(flight, "\n")
	return out
}

// capabilities returns what the daemon tells a client about each of its capabilities,
// including those that this client does not know.
func capabilities(t *testing.T, d *testbed.Daemon) map[string]string {
	conn, err := grpc.NewClient(d.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	describe := func(c *apicapspb.APICap) string {
		return fmt.Sprintf("enabled %t, deprecated %t, %q, %q, %q", c.Enabled, c.Deprecated, c.DisabledReason, c.DisabledReasonMsg, c.DisabledAlternative)
	}
	out := map[string]string{}
	ref := identity.NewID()
	_, err = newClient(t, d).Build(t.Context(), client.SolveOpt{Ref: ref}, "", func(ctx context.Context, _ gateway.Client) (*gateway.Result, error) {
		pong, err := gatewaypb.NewLLBBridgeClient(conn).Ping(buildid.AppendToOutgoingContext(ctx, ref), &gatewaypb.PingRequest{})
		if err != nil {
			return nil, err
		}
		for _, c := range pong.FrontendAPICaps {
			out[c.ID] = describe(c)
		}
		for _, c := range pong.LLBCaps {
			out["llb "+c.ID] = describe(c)
		}
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
	require.Contains(t, out, string(gatewaypb.CapSolveBase))
	require.Contains(t, out, "llb "+string(pb.CapExecMetaBase))
	return out
}
