package testbed

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/graphload/graphload/internal/gomod"
	"github.com/pkg/errors"
	"golang.org/x/crypto/bcrypt"
)

// RegistryOptions select the users of a registry and how they log in. The zero
// value is a registry that is open to all, over http.
type RegistryOptions struct {
	Users  map[string]string // passwords of users, who log in with basic authentication
	Tokens *TokenOptions     // users get tokens instead
	TLS    bool              // with its own certificate, see Registry.CA

	// Allow reports whether a user has access. The user "" is the anonymous one of
	// a registry with tokens. Without Allow, users have all access and others
	// have none.
	Allow func(user string, a Access) bool
}

// Access is the access to a registry that a client requests.
type Access struct {
	Repository string
	Action     string // pull or push
	// Part is manifests or blobs for requests with an accepted login, and "" for
	// requests for a token. The registry can still refuse with 403 what a token
	// allows, as registries with basic authentication do.
	Part string
}

// Registry is a running distribution registry.
type Registry struct {
	Host string // 127.0.0.1 with port
	CA   string // file with the certificate, with TLS

	opt     RegistryOptions
	process *process
	front   *httpServer
	tokens  *tokenServer
	dir     string
}

var registryListens = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// RegistryBinary returns the path of the registry. The first call builds it into
// the cache folder of the user.
func RegistryBinary(ctx context.Context) (string, error) {
	return gomod.Tool{
		Module: gomod.Module{Path: "github.com/distribution/distribution/v3", Version: "v3.1.2", Sum: "h1:/Bv2YIqqSR00HiO49FT93hovy6r9IlrzwUDsJjCN5qg="},
		Pkg:    "./cmd/registry",
	}.Install(ctx)
}

// StartRegistry starts an empty registry. The caller must close it.
func StartRegistry(ctx context.Context, opt RegistryOptions) (_ *Registry, retErr error) {
	bin, err := RegistryBinary(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("graphload-registry-")
	if err != nil {
		return nil, err
	}
	if opt.Allow == nil {
		opt.Allow = func(user string, _ Access) bool { return user != "" }
	}
	r := &Registry{opt: opt, dir: dir}
	defer func() {
		if retErr != nil {
			r.Close()
		}
	}()
	var keyPair []string
	if opt.TLS {
		authority, err := NewAuthority(dir)
		if err != nil {
			return nil, err
		}
		id, err := authority.Issue("registry")
		if err != nil {
			return nil, err
		}
		r.CA, keyPair = authority.Cert, []string{id.Cert, id.Key}
	}
	// the configuration of the registry needs the address of the proxy, which issues tokens
	backend := make(chan string, 1)
	handler := sync.OnceValue(func() requestHandler { return r.handler(<-backend) })
	r.front, err = serveHTTP(func(w http.ResponseWriter, req *http.Request) (string, []string) { return handler()(w, req) }, keyPair...)
	if err != nil {
		return nil, err
	}
	_, r.Host, _ = strings.Cut(r.front.URL, "://")
	if opt.Tokens != nil {
		if r.tokens, err = newTokenServer(r.Host, opt); err != nil {
			return nil, err
		}
	}
	config, err := r.writeConfig()
	if err != nil {
		return nil, err
	}
	running, err := RunRegistry(ctx, bin, config)
	if err != nil {
		backend <- ""
		return nil, err
	}
	r.process = running.process
	backend <- running.Host
	return r, nil
}

// RegistryProcess is a running registry with a given configuration.
type RegistryProcess struct {
	Host string // 127.0.0.1 with port

	process *process
}

// RunRegistry starts a registry with a configuration file. The registry has read the
// file when RunRegistry returns. The caller must close the registry.
func RunRegistry(ctx context.Context, bin, config string) (*RegistryProcess, error) {
	stderr, w, err := os.Pipe()
	if err != nil {
		return nil, errors.WithStack(err)
	}
	cmd := exec.Command(bin, "serve", config) //nolint:noctx // ended by Close
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stderr = w
	r := &RegistryProcess{}
	r.process, err = start(cmd)
	w.Close()
	if err != nil {
		stderr.Close()
		return nil, err
	}
	listens := make(chan error, 1)
	go func() {
		defer stderr.Close()
		var out strings.Builder
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			fmt.Fprintln(&out, sc.Text())
			if m := registryListens.FindStringSubmatch(sc.Text()); m != nil {
				r.Host = m[1]
				listens <- nil
				io.Copy(io.Discard, stderr)
				return
			}
		}
		listens <- errors.Errorf("the registry did not start: %s", out.String())
	}()
	select {
	case err = <-listens:
	case <-ctx.Done():
		err = errors.WithStack(context.Cause(ctx))
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close ends the registry.
func (r *RegistryProcess) Close() error {
	return r.process.stop()
}

// writeConfig writes the files that the registry reads, and returns the path of its
// configuration file.
func (r *Registry) writeConfig() (string, error) {
	type m = map[string]any
	config := m{
		"version": "0.1",
		"log":     m{"accesslog": m{"disabled": true}},
		"storage": m{"filesystem": m{"rootdirectory": filepath.Join(r.dir, "data")}},
		"http":    m{"addr": "127.0.0.1:0"},
	}
	switch {
	case r.tokens != nil:
		path := filepath.Join(r.dir, "jwks.json")
		if err := os.WriteFile(path, r.tokens.keys(), 0o600); err != nil {
			return "", errors.WithStack(err)
		}
		config["auth"] = m{"token": m{"realm": r.front.URL + tokenPath, "service": r.Host, "issuer": r.Host, "jwks": path}}
	case r.opt.Users != nil:
		var htpasswd []byte
		for user, password := range r.opt.Users {
			hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
			if err != nil {
				return "", errors.WithStack(err)
			}
			htpasswd = fmt.Appendf(htpasswd, "%s:%s\n", user, hash)
		}
		path := filepath.Join(r.dir, "htpasswd")
		if err := os.WriteFile(path, htpasswd, 0o600); err != nil {
			return "", errors.WithStack(err)
		}
		config["auth"] = m{"htpasswd": m{"realm": "testbed", "path": path}}
	}
	// JSON is YAML
	dt, err := json.Marshal(config)
	if err != nil {
		return "", errors.WithStack(err)
	}
	path := filepath.Join(r.dir, "config.yml")
	return path, errors.WithStack(os.WriteFile(path, dt, 0o600))
}

// handler is the proxy before the registry: it issues tokens, and refuses requests
// that Allow does not permit.
func (r *Registry) handler(backend string) requestHandler {
	proxy := &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0), // ignore clients that disconnect
		Rewrite: func(req *httputil.ProxyRequest) {
			req.SetURL(&url.URL{Scheme: "http", Host: backend})
			req.Out.Host = req.In.Host
			req.SetXForwarded()
			if r.tokens == nil && !r.mayMount(req.In) {
				req.Out.URL.RawQuery = ""
			}
		},
	}
	return func(w http.ResponseWriter, req *http.Request) (string, []string) {
		if r.tokens != nil && req.URL.Path == tokenPath {
			return r.tokens.serve(w, req)
		}
		user := r.user(req)
		if user != "" && !r.allowed(user, req) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintln(w, deniedError)
			return user, nil
		}
		proxy.ServeHTTP(w, req)
		return user, nil
	}
}

const deniedError = `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`

// user returns the user of a request with an accepted login, or "".
func (r *Registry) user(req *http.Request) string {
	if r.tokens != nil {
		return r.tokens.user(req)
	}
	user, password, _ := req.BasicAuth()
	if want, ok := r.opt.Users[user]; ok && equal(password, want) {
		return user
	}
	return ""
}

var repositoryPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|tags|referrers)/`)

// allowed reports whether handler can pass a request on: the user has the access
// that it needs, or no token has that access, so that the registry itself refuses.
func (r *Registry) allowed(user string, req *http.Request) bool {
	m := repositoryPath.FindStringSubmatch(req.URL.Path)
	if m == nil {
		return true
	}
	a := Access{Repository: m[1], Action: "push", Part: "manifests"}
	if m[2] == "blobs" {
		a.Part = "blobs"
	}
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		a.Action = "pull"
	}
	return r.tokens != nil && !r.opt.Allow(user, Access{Repository: a.Repository, Action: a.Action}) || r.opt.Allow(user, a)
}

// mayMount reports whether a user may mount the blob of another repository that a
// request names, if it names one. Otherwise a registry tells the client to upload
// the blob.
func (r *Registry) mayMount(req *http.Request) bool {
	from := req.URL.Query().Get("from")
	return from == "" || r.opt.Allow(r.user(req), Access{Repository: from, Action: "pull", Part: "blobs"})
}

// Requests returns the requests received since the previous call.
func (r *Registry) Requests() []Request {
	return r.front.Requests()
}

// DaemonConfig is the part of buildkitd.toml that the registry needs.
func (r *Registry) DaemonConfig() string {
	if r.opt.TLS {
		// http is the default for loopback addresses
		return fmt.Sprintf("[registry.%q]\nhttp = false\nca = [%q]\n", r.Host, r.CA)
	}
	return fmt.Sprintf("[registry.%q]\nhttp = true\n", r.Host)
}

// Close ends the registry and removes its content.
func (r *Registry) Close() error {
	err := closeProcess(r.process, r.dir)
	if r.front != nil {
		err = cmp.Or(err, r.front.Close())
	}
	return err
}
