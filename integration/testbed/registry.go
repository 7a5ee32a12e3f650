package testbed

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/crypto/bcrypt"
)

// RegistryOptions select who may use a registry, and how. The zero value is an
// anonymous registry over http.
type RegistryOptions struct {
	User     string // basic authentication if set
	Password string
	Tokens   bool // instead of basic authentication, tokens for the user
	TLS      bool // with a certificate of its own, see Registry.CA
}

// Registry is a running distribution registry.
type Registry struct {
	Host string // 127.0.0.1 with port
	CA   string // file with the certificate, with TLS

	opt     RegistryOptions
	process *process
	front   *httpServer // with tokens
	dir     string
}

var registryListens = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// RegistryBinary returns the path of the registry. It is built when it is used
// for the first time, and kept in the cache folder of the user.
func RegistryBinary(ctx context.Context) (string, error) {
	return tool{
		name:    "registry",
		module:  "github.com/distribution/distribution/v3",
		version: "v3.1.2",
		sum:     "h1:/Bv2YIqqSR00HiO49FT93hovy6r9IlrzwUDsJjCN5qg=",
		pkg:     "./cmd/registry",
	}.install(ctx)
}

// StartRegistry starts an empty registry. It must be closed.
func StartRegistry(ctx context.Context, opt RegistryOptions) (_ *Registry, retErr error) {
	bin, err := RegistryBinary(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-registry-")
	if err != nil {
		return nil, err
	}
	r := &Registry{opt: opt, dir: dir}
	defer func() {
		if retErr != nil {
			r.Close()
		}
	}()
	config, err := r.writeConfig()
	if err != nil {
		return nil, err
	}
	stderr, w, err := os.Pipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	cmd := exec.Command(bin, "serve", config) //nolint:noctx // ended by Close
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stderr = w
	r.process, err = start(cmd)
	w.Close()
	if err != nil {
		stderr.Close()
		return nil, err
	}
	listens := make(chan error, 1)
	go func() {
		defer stderr.Close()
		var log strings.Builder
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			fmt.Fprintln(&log, sc.Text())
			if m := registryListens.FindStringSubmatch(sc.Text()); m != nil {
				r.Host = m[1]
				listens <- nil
				io.Copy(io.Discard, stderr)
				return
			}
		}
		listens <- errors.Errorf("the registry did not start: %s", log.String())
	}()
	select {
	case err := <-listens:
		if err == nil && opt.Tokens {
			err = r.serveTokens()
		}
		return r, err
	case <-ctx.Done():
		return nil, errors.WithStack(context.Cause(ctx))
	}
}

// writeConfig writes what the registry reads, and returns its configuration
// file.
func (r *Registry) writeConfig() (string, error) {
	type m = map[string]any
	http := m{"addr": "127.0.0.1:0"}
	config := m{
		"version": "0.1",
		"log":     m{"accesslog": m{"disabled": true}},
		"storage": m{"filesystem": m{"rootdirectory": filepath.Join(r.dir, "data")}},
		"http":    http,
	}
	if r.opt.User != "" && !r.opt.Tokens {
		hash, err := bcrypt.GenerateFromPassword([]byte(r.opt.Password), bcrypt.MinCost)
		if err != nil {
			return "", errors.WithStack(err)
		}
		path := filepath.Join(r.dir, "htpasswd")
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s:%s\n", r.opt.User, hash), 0o600); err != nil {
			return "", errors.WithStack(err)
		}
		config["auth"] = m{"htpasswd": m{"realm": "testbed", "path": path}}
	}
	if r.opt.TLS {
		r.CA = filepath.Join(r.dir, "cert.pem")
		key := filepath.Join(r.dir, "key.pem")
		if err := writeCertificate(r.CA, key); err != nil {
			return "", err
		}
		http["tls"] = m{"certificate": r.CA, "key": key}
	}
	// JSON is YAML
	dt, err := json.Marshal(config)
	if err != nil {
		return "", errors.WithStack(err)
	}
	path := filepath.Join(r.dir, "config.yml")
	return path, errors.WithStack(os.WriteFile(path, dt, 0o600))
}

// serveTokens puts a server before the registry that asks for a token, and has
// one for the user. Others get a token that allows nothing, as from Docker Hub.
func (r *Registry) serveTokens() (err error) {
	const anonymous = "anonymous"
	token := rand.Text()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Host})
	r.front, err = serveHTTP(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			user, password, _ := req.BasicAuth()
			if req.Method == http.MethodPost {
				user, password = req.PostFormValue("username"), req.PostFormValue("password")
			}
			issued := anonymous
			if user != "" {
				if !equal(user, r.opt.User) || !equal(password, r.opt.Password) {
					http.Error(w, "unauthorized", http.StatusUnauthorized)
					return
				}
				issued = token
			}
			json.NewEncoder(w).Encode(map[string]any{"token": issued, "access_token": issued, "expires_in": 300})
			return
		}
		if !equal(req.Header.Get("Authorization"), "Bearer "+token) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="testbed"`, req.Host))
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	if err != nil {
		return err
	}
	r.Host = strings.TrimPrefix(r.front.URL, "http://")
	return nil
}

// DaemonConfig is the part of buildkitd.toml that the registry needs.
func (r *Registry) DaemonConfig() string {
	if r.opt.TLS {
		// http is the default for loopback addresses
		return fmt.Sprintf("[registry.%q]\nhttp = false\nca = [%q]\n", r.Host, r.CA)
	}
	return fmt.Sprintf("[registry.%q]\nhttp = true\n", r.Host)
}

// Login lets a builder use the registry, as docker login does. Other registries
// of the builder are forgotten.
func (r *Registry) Login(b *Builder) error {
	auth := base64.StdEncoding.EncodeToString([]byte(r.opt.User + ":" + r.opt.Password))
	dt, err := json.Marshal(map[string]any{"auths": map[string]any{r.Host: map[string]string{"auth": auth}}})
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.WriteFile(filepath.Join(b.Config, "config.json"), dt, 0o600))
}

// Close ends the registry and removes its content.
func (r *Registry) Close() error {
	err := closeProcess(r.process, r.dir)
	if r.front != nil {
		if frontErr := r.front.Close(); err == nil {
			err = frontErr
		}
	}
	return err
}

// writeCertificate writes a fresh certificate for 127.0.0.1 and its key.
func writeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return errors.WithStack(err)
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	certDER, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return errors.WithStack(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return errors.WithStack(err)
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), 0o644); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}
