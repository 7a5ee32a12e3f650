package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/pkg/errors"
)

// mirror is the registry folder that the harness takes its images from, and the
// server of the layer that is not in the registry.
type mirror struct {
	dir    string
	server *http.Server
}

// newMirror fills a registry folder with the images. The caller must close the mirror
// after the tests.
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

	r, err := serve(ctx, registry, dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for _, img := range images {
		built, err := img.build(bb, foreignURL)
		if err != nil {
			return nil, errors.Wrapf(err, "failed to build %s", img.ref)
		}
		ref, err := name.ParseReference(r.Host+"/"+img.ref, name.Insecure)
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

// serve serves dir with the same configuration that the harness writes into it.
func serve(ctx context.Context, registry, dir string) (*testbed.RegistryProcess, error) {
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nloglevel: info\nvalidation:\n    disabled: true\nstorage:\n    filesystem:\n        rootdirectory: %s\nhttp:\n    addr: 127.0.0.1:0\n", filepath.Join(dir, "data")), 0o600); err != nil {
		return nil, errors.WithStack(err)
	}
	defer os.Remove(config)
	return testbed.RunRegistry(ctx, registry, config)
}
