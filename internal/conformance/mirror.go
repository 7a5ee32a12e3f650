package conformance

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/pkg/errors"
)

// mirror is the registry folder that the harness takes its images from, and the
// server of the layer that is not in the registry.
type mirror struct {
	dir    string
	server *http.Server
}

// newMirror fills a registry folder with the images. It must be closed after
// the tests have run.
func newMirror(ctx context.Context, registry, dir string) (_ *mirror, retErr error) {
	bb, err := findBusybox()
	if err != nil {
		return nil, err
	}
	m := &mirror{dir: dir}
	defer func() {
		if retErr != nil {
			m.close()
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errors.WithStack(err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.WithStack(err)
	}
	foreignURL := fmt.Sprintf("http://%s/foreign", l.Addr())
	mux := http.NewServeMux()
	m.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go m.server.Serve(l)

	r, err := startRegistry(ctx, registry, dir)
	if err != nil {
		return nil, err
	}
	defer r.stop()
	for _, img := range images {
		built, err := img.build(bb, foreignURL)
		if err != nil {
			return nil, errors.Wrapf(err, "failed to build %s", img.ref)
		}
		ref, err := name.ParseReference(r.host+"/"+img.ref, name.Insecure)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if err := remote.Write(ref, built, remote.WithContext(ctx)); err != nil {
			return nil, errors.Wrapf(err, "failed to push %s", img.ref)
		}
		if img.ref == foreignRef {
			if err := serveLayer(mux, built); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

const foreignRef = "cpuguy83/buildkit-foreign:latest"

// serveLayer serves the first layer of img.
func serveLayer(mux *http.ServeMux, img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return errors.WithStack(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		return errors.WithStack(err)
	}
	defer rc.Close()
	dt, err := io.ReadAll(rc)
	if err != nil {
		return errors.WithStack(err)
	}
	mux.HandleFunc("/foreign", func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", stamp, bytes.NewReader(dt))
	})
	return nil
}

func (m *mirror) close() {
	if m.server != nil {
		m.server.Close()
	}
}

// registryProcess is a registry that serves a folder while it is filled.
type registryProcess struct {
	host string
	cmd  *exec.Cmd
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startRegistry serves dir with the configuration that the harness writes into
// it too.
func startRegistry(ctx context.Context, binary, dir string) (*registryProcess, error) {
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nloglevel: info\nvalidation:\n    disabled: true\nstorage:\n    filesystem:\n        rootdirectory: %s\nhttp:\n    addr: 127.0.0.1:0\n", filepath.Join(dir, "data")), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.Remove(config)
	stderr, w, err := os.Pipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	cmd := exec.CommandContext(ctx, binary, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stderr = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		stderr.Close()
		return nil, errors.WithStack(err)
	}
	found := make(chan string, 1)
	go func() {
		defer stderr.Close()
		defer close(found)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if match := listening.FindStringSubmatch(sc.Text()); match != nil {
				found <- match[1]
				io.Copy(io.Discard, stderr)
				return
			}
		}
	}()
	r := &registryProcess{cmd: cmd}
	if r.host = <-found; r.host == "" {
		r.stop()
		return nil, errors.Errorf("%s did not start", binary)
	}
	return r, nil
}

func (r *registryProcess) stop() {
	r.cmd.Process.Signal(syscall.SIGTERM)
	r.cmd.Wait()
}
