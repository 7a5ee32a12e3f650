package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// processEnv has the build of a client that runs as its own process, so that the test can
// kill and stop it.
const processEnv = "GRAPHLOAD_TEST_CLIENT"

// processBuild describes what such a client does: it solves a definition lazily, evaluates
// it if required, prints what it did, and waits until its input is closed.
type processBuild struct {
	Addr       string
	Name       string
	Secrets    map[string]string
	Agent      string
	Docker     string
	Locals     map[string]string
	Definition []byte
	Evaluate   bool
}

func runProcess(config string) error {
	var build processBuild
	if err := json.Unmarshal([]byte(config), &build); err != nil {
		return errors.WithStack(err)
	}
	ctx := context.Background()
	c, err := client.New(ctx, build.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	p := peer{name: build.Name, secrets: build.Secrets, agent: build.Agent, docker: build.Docker, locals: build.Locals}
	return p.run(ctx, c, func(ctx context.Context, b peerBuild) error {
		ref, err := b.solveDefinition(ctx, build.Definition)
		if err != nil {
			return err
		}
		fmt.Println("solved")
		if build.Evaluate {
			if err := ref.Evaluate(ctx); err != nil {
				return err
			}
			fmt.Println("evaluated")
		}
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	})
}

func (b peerBuild) solveDefinition(ctx context.Context, dt []byte) (gateway.Reference, error) {
	var def pb.Definition
	if err := def.Unmarshal(dt); err != nil {
		return nil, errors.WithStack(err)
	}
	res, err := b.Solve(ctx, gateway.SolveRequest{Definition: &def})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// clientProcess is a running client process.
type clientProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

func startClient(t *testing.T, b processBuild) *clientProcess {
	t.Helper()
	config, err := json.Marshal(b)
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), processEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &clientProcess{cmd: cmd, stdin: stdin, out: bufio.NewReader(stdout)}
}

// expect waits for a line of the client.
func (p *clientProcess) expect(t *testing.T, line string) {
	t.Helper()
	got := await(t, func() string {
		got, _ := p.out.ReadString('\n')
		return got
	})
	require.Equal(t, line, strings.TrimSpace(got))
}

// end ends the build of the client, waits until it has ended, and returns the client's
// output.
func (p *clientProcess) end(t *testing.T) string {
	t.Helper()
	require.NoError(t, p.stdin.Close())
	return await(t, func() string {
		dt, _ := io.ReadAll(p.out)
		return string(dt)
	})
}

// kill kills the client, and returns when it has ended.
func (p *clientProcess) kill(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	require.Error(t, await(t, p.cmd.Wait))
}

func (p *clientProcess) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(sig))
}
