package testbed

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/pkg/errors"
)

// Push pushes an image with the given layers to a repository of the registry, as
// a user, and returns its reference.
func (r *Registry) Push(ctx context.Context, user, repository string, layers ...fs.FS) (string, error) {
	img, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH})
	if err != nil {
		return "", errors.WithStack(err)
	}
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	var tars []v1.Layer
	for _, l := range layers {
		layer, err := newLayer(l)
		if err != nil {
			return "", err
		}
		tars = append(tars, layer)
	}
	if img, err = mutate.AppendLayers(img, tars...); err != nil {
		return "", errors.WithStack(err)
	}
	ref, err := name.ParseReference(r.Host+"/"+repository+":latest", name.Insecure)
	if err != nil {
		return "", errors.WithStack(err)
	}
	auth := authn.Anonymous
	if user != "" {
		auth = &authn.Basic{Username: user, Password: r.opt.Users[user]}
	}
	return ref.Name(), errors.WithStack(remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(auth)))
}

func newLayer(files fs.FS) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(files); err != nil {
		return nil, errors.WithStack(err)
	}
	if err := w.Close(); err != nil {
		return nil, errors.WithStack(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	return layer, errors.WithStack(err)
}
