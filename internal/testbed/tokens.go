package testbed

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pkg/errors"
)

// TokenOptions select how the token server of a registry answers. With the zero
// value it answers as Docker Hub does: a user who lacks the requested access gets a
// token without it.
type TokenOptions struct {
	GETOnly bool // refuse POST with 404, as older servers do
	Deny    bool // refuse users who lack the requested access with 403
}

// tokenPath is the path of the token server.
const tokenPath = "/token"

// tokenServer issues tokens of the distribution specification to the users of a
// registry, which verifies the tokens. A client that asks for one also gets a
// refresh token, which Docker's configuration calls an identity token.
type tokenServer struct {
	host string
	opt  RegistryOptions
	key  ed25519.PrivateKey

	mu         sync.Mutex
	identities map[string]string // users by identity token
}

func newTokenServer(host string, opt RegistryOptions) (*tokenServer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return &tokenServer{host: host, opt: opt, key: key, identities: map[string]string{}}, errors.WithStack(err)
}

// keys returns the JSON web key set that verifies the tokens.
func (s *tokenServer) keys() []byte {
	public, _ := s.key.Public().(ed25519.PublicKey) //nolint:errcheck // of an ed25519 key
	return fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"testbed","alg":"EdDSA","use":"sig","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
}

// tokenClaims are the claims of the tokens.
type tokenClaims struct {
	Issuer     string        `json:"iss"`
	Subject    string        `json:"sub"`
	Audience   string        `json:"aud"`
	Expiration int64         `json:"exp"`
	NotBefore  int64         `json:"nbf"`
	IssuedAt   int64         `json:"iat"`
	ID         string        `json:"jti"`
	Access     []tokenAccess `json:"access"`
}

type tokenAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// serve answers a request for a token: GET with basic authentication, or POST with
// a password or an identity token. It returns the user and the scopes of the token.
func (s *tokenServer) serve(w http.ResponseWriter, req *http.Request) (user string, scopes []string) {
	refuse := func(status int, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintln(w, message)
	}
	if err := req.ParseForm(); err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return "", nil
	}
	user, password, _ := req.BasicAuth()
	var identity string
	if req.Method == http.MethodPost {
		if s.opt.Tokens.GETOnly {
			refuse(http.StatusNotFound, "not found")
			return "", nil
		}
		user, password, identity = req.PostFormValue("username"), req.PostFormValue("password"), req.PostFormValue("refresh_token")
	}
	if identity != "" {
		user = s.identified(identity)
		password = s.opt.Users[user]
	}
	if want, ok := s.opt.Users[user]; (user != "" || identity != "") && (!ok || !equal(password, want)) {
		refuse(http.StatusUnauthorized, `{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`)
		return "", nil
	}
	access, all := s.access(user, req.Form["scope"])
	if !all && s.opt.Tokens.Deny {
		refuse(http.StatusForbidden, deniedError)
		return "", nil
	}
	token := s.issue(user, access)
	resp := map[string]any{"token": token, "access_token": token, "expires_in": 300, "issued_at": time.Now().UTC().Format(time.RFC3339)}
	switch {
	case identity != "":
		resp["refresh_token"] = identity
	case user != "" && (req.Form.Get("offline_token") == "true" || req.Form.Get("access_type") == "offline"):
		resp["refresh_token"] = s.identify(user)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(resp)
	for _, a := range access {
		scopes = append(scopes, a.Type+":"+a.Name+":"+strings.Join(a.Actions, ","))
	}
	return user, scopes
}

// access returns the part of the scopes that a user has access to, and whether that
// is all of them.
func (s *tokenServer) access(user string, scopes []string) (access []tokenAccess, all bool) {
	all = true
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		typ, rest, _ := strings.Cut(scope, ":")
		i := strings.LastIndex(rest, ":")
		if typ != "repository" || i < 0 {
			continue
		}
		a := tokenAccess{Type: typ, Name: rest[:i], Actions: []string{}}
		for action := range strings.SplitSeq(rest[i+1:], ",") {
			if s.opt.Allow(user, Access{Repository: a.Name, Action: action}) {
				a.Actions = append(a.Actions, action)
			} else {
				all = false
			}
		}
		access = append(access, a)
	}
	return access, all
}

func (s *tokenServer) issue(user string, access []tokenAccess) string {
	now := time.Now().Unix()
	claims, _ := json.Marshal(tokenClaims{ //nolint:errcheck // cannot fail
		Issuer: s.host, Subject: user, Audience: s.host, Expiration: now + 300, NotBefore: now, IssuedAt: now, ID: rand.Text(), Access: access,
	})
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT","kid":"testbed"}`)) + "." + enc.EncodeToString(claims)
	return signed + "." + enc.EncodeToString(ed25519.Sign(s.key, []byte(signed)))
}

// user returns the user named by the token of a request, or "".
func (s *tokenServer) user(req *http.Request) string {
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	parts := strings.Split(token, ".")
	if !ok || len(parts) != 3 {
		return ""
	}
	dt, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims tokenClaims
	if err := json.Unmarshal(dt, &claims); err != nil {
		return ""
	}
	return claims.Subject // the registry verifies the token
}

func (s *tokenServer) identify(user string) string {
	identity := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identities[identity] = user
	return identity
}

func (s *tokenServer) identified(identity string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identities[identity]
}
