package testbed

import (
	"crypto/rand"
	"crypto/subtle"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/errors"
)

// Users are the names of those who may use a server, by their token, or by their
// key in the format of authorized_keys. Without users, a server is open to all.
type Users map[string]string

// only is the prefix of paths that are not for all users. The names of the users
// follow, and then a random name that makes each path unique.
const only = "/only/"

// private returns a new path for the given users alone.
func private(path string, users []string) string {
	return only + strings.Join(users, "+") + "/" + strings.ToLower(rand.Text()) + path
}

// isFor reports whether a path is for a user, and returns the path of the content.
func isFor(path, user string) (rest string, ok bool) {
	rest, found := strings.CutPrefix(path, only)
	if !found {
		return path, true
	}
	users, rest, _ := strings.Cut(rest, "/")
	_, rest, _ = strings.Cut(rest, "/")
	return "/" + rest, slices.Contains(strings.Split(users, "+"), user)
}

// protect serves the paths that a user may read. It refuses other users with the
// status denied, and requests without a user with 401.
func (u Users) protect(h http.Handler, denied int) requestHandler {
	return func(w http.ResponseWriter, req *http.Request) (string, []string) {
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		if !ok { // as git sends it
			_, token, _ = req.BasicAuth()
		}
		user, ok := u[token]
		if len(u) > 0 && !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="testbed"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return "", nil
		}
		path, ok := isFor(req.URL.Path, user)
		if !ok {
			http.Error(w, http.StatusText(denied), denied)
			return user, nil
		}
		served := new(http.Request)
		*served = *req
		served.URL = &url.URL{Path: path, RawQuery: req.URL.RawQuery}
		h.ServeHTTP(w, served)
		return user, nil
	}
}

// HTTPServer serves files over http.
type HTTPServer struct {
	*httpServer
}

// StartHTTPServer serves files to users who send their token as bearer token, as
// BuildKit does with HTTP_AUTH_TOKEN_127.0.0.1. The caller must close the server.
func StartHTTPServer(files fs.FS, users Users) (*HTTPServer, error) {
	s, err := serveHTTP(users.protect(http.FileServerFS(files), http.StatusForbidden))
	if err != nil {
		return nil, err
	}
	return &HTTPServer{s}, nil
}

// Private returns a new URL of a file, which the server serves only to the given
// users.
func (s *HTTPServer) Private(file string, users ...string) string {
	return s.URL + private("/"+file, users)
}

// Request is a request that a server has answered.
type Request struct {
	User   string // that was accepted, or ""
	Method string
	Path   string
	Status int
	Scopes []string // of a token that was issued
}

// requestHandler answers a request. It returns the user that it accepted, and the
// scopes of the token if it issued one.
type requestHandler func(http.ResponseWriter, *http.Request) (user string, scopes []string)

// httpServer listens on a free loopback port and records requests.
type httpServer struct {
	URL    string
	server *http.Server
	done   chan error

	mu       sync.Mutex
	requests []Request
}

// serveHTTP starts a server. It serves over https if keyPair has the files of a
// certificate and its key.
func serveHTTP(handler requestHandler, keyPair ...string) (*httpServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // does not block
	if err != nil {
		return nil, errors.WithStack(err)
	}
	s := &httpServer{URL: "http://" + l.Addr().String(), done: make(chan error, 1)}
	s.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		noted := Request{Method: req.Method, Path: req.URL.RequestURI()}
		answered := &statusWriter{ResponseWriter: w}
		noted.User, noted.Scopes = handler(answered, req)
		noted.Status = answered.status
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests = append(s.requests, noted)
	})}
	if len(keyPair) == 2 {
		s.URL = "https://" + l.Addr().String()
		go func() { s.done <- s.server.ServeTLS(l, keyPair[0], keyPair[1]) }()
		return s, nil
	}
	go func() { s.done <- s.server.Serve(l) }()
	return s, nil
}

// Requests returns the requests received since the previous call.
func (s *httpServer) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := s.requests
	s.requests = nil
	return requests
}

// Close ends the server and its connections.
func (s *httpServer) Close() error {
	err := s.server.Close()
	if serveErr := <-s.done; err == nil && !errors.Is(serveErr, http.ErrServerClosed) {
		err = serveErr
	}
	return errors.WithStack(err)
}

// statusWriter records the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(dt []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(dt)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter {
	return w.ResponseWriter
}

func equal(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
