package testbed

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/pkg/errors"
)

// SaveLogin saves a login in a configuration folder of Docker, DOCKER_CONFIG, as
// docker login does: with the credential helper that the configuration names, if
// any.
func SaveLogin(dir string, login types.AuthConfig) error {
	cfg, err := config.Load(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(cfg.GetCredentialsStore(login.ServerAddress).Store(login))
}

// Login lets a client with a configuration folder use the registry as a user.
func (r *Registry) Login(dir, user string) error {
	return SaveLogin(dir, types.AuthConfig{ServerAddress: r.Host, Username: user, Password: r.opt.Users[user]})
}

// LoginIdentity is Login with an identity token, which the token server of the
// registry issues to clients that log in.
func (r *Registry) LoginIdentity(ctx context.Context, dir, user string) error {
	form := url.Values{
		"grant_type": {"password"}, "username": {user}, "password": {r.opt.Users[user]},
		"service": {r.Host}, "client_id": {"docker"}, "access_type": {"offline"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.front.URL+tokenPath, strings.NewReader(form.Encode()))
	if err != nil {
		return errors.WithStack(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return errors.WithStack(err)
	}
	defer resp.Body.Close()
	var token struct {
		Identity string `json:"refresh_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil || token.Identity == "" {
		return errors.Errorf("no identity token for %s: %s, %v", user, resp.Status, err)
	}
	return SaveLogin(dir, types.AuthConfig{ServerAddress: r.Host, Username: user, IdentityToken: token.Identity})
}

// configDir guards the configuration folder that the packages of Docker's command
// line keep in a global variable.
var configDir sync.Mutex

// AuthProvider returns the auth provider that docker and buildx offer to a daemon
// when they use a configuration folder.
func AuthProvider(dir string) (session.Attachable, error) {
	cfg, err := config.Load(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	// the provider keeps a secret in the folder, which tells clients apart
	configDir.Lock()
	defer configDir.Unlock()
	before := config.Dir()
	defer config.SetDir(before)
	config.SetDir(dir)
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: authprovider.LoadAuthConfig(cfg)}), nil
}

// DockerLogin runs docker login with the configuration folder of a client. The
// caller must have fetched the Docker engine, which need not run.
func DockerLogin(ctx context.Context, dir, host, user, password string) error {
	bin, err := dockerDir()
	if err != nil {
		return err
	}
	cmd := command(ctx, filepath.Join(bin, "usr", "bin", "docker"), "--config", dir, "login", "--username", user, "--password-stdin", host)
	cmd.Env = append(dockerEnv(bin), "HOME="+dir, "DOCKER_HOST=unix://"+filepath.Join(dir, "no-engine.sock"))
	cmd.Stdin = strings.NewReader(password)
	_, err = output(cmd)
	return err
}
