package testbed

import (
	"crypto/subtle"
	"io/fs"
	"net"
	"net/http"
	"time"

	"github.com/pkg/errors"
)

// HTTPServer serves files over http.
type HTTPServer struct {
	*httpServer
}

// StartHTTPServer serves files. If token is set, only requests that have it as
// bearer token are served, which is what BuildKit makes of HTTP_AUTH_TOKEN_127.0.0.1.
// It must be closed.
func StartHTTPServer(files fs.FS, token string) (*HTTPServer, error) {
	handler := http.FileServerFS(files)
	if token != "" {
		handler = requireHeader(handler, "Bearer "+token)
	}
	s, err := serveHTTP(handler)
	if err != nil {
		return nil, err
	}
	return &HTTPServer{s}, nil
}

// httpServer listens on a loopback port of its own.
type httpServer struct {
	URL    string
	server *http.Server
	done   chan error
}

// serveHTTP serves over https if it is given the files of a certificate and its key.
func serveHTTP(handler http.Handler, keyPair ...string) (*httpServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // does not block
	if err != nil {
		return nil, errors.WithStack(err)
	}
	s := &httpServer{
		URL:    "http://" + l.Addr().String(),
		server: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute},
		done:   make(chan error, 1),
	}
	if len(keyPair) == 2 {
		s.URL = "https://" + l.Addr().String()
		go func() { s.done <- s.server.ServeTLS(l, keyPair[0], keyPair[1]) }()
		return s, nil
	}
	go func() { s.done <- s.server.Serve(l) }()
	return s, nil
}

// Close ends the server and the connections that it has.
func (s *httpServer) Close() error {
	err := s.server.Close()
	if serveErr := <-s.done; err == nil && !errors.Is(serveErr, http.ErrServerClosed) {
		err = serveErr
	}
	return errors.WithStack(err)
}

func requireBasicAuth(h http.Handler, user, password string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		if !equal(u, user) || !equal(p, password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="testbed"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func requireHeader(h http.Handler, authorization string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !equal(r.Header.Get("Authorization"), authorization) {
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func equal(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
