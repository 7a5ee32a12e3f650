package apt

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/graphload/graphload/internal/progress"
	"github.com/pkg/errors"
)

// Commands maps a command of a package, or the path of a file, to the package. The
// package is installed if the command or file exists.
type Commands map[string]string

// The packages that commands of this repository need on the machine.
var (
	// Tests are the packages whose commands daemons and end-to-end tests run.
	Tests = Commands{
		"busybox":   "busybox-static",
		"git":       "git",
		"runc":      "runc",
		"ssh-agent": "openssh-client",
	}
	// Containerd is the package that BuildKit's harness needs for its containerd worker.
	Containerd = Commands{
		"containerd":              "containerd",
		"containerd-shim-runc-v2": "containerd",
	}
	// Units are the packages for tests of systemd units and of the build graph page.
	Units = Commands{
		"chromium":                "chromium",
		"systemd":                 "systemd",
		"systemd-analyze":         "systemd",
		"systemd-socket-activate": "systemd",
	}
	// Compilers are the C compilers for all architectures, with their dependencies.
	Compilers = compilers()
)

func compilers() Commands {
	c := Commands{"pkg-config": "pkg-config", "dpkg-deb": "dpkg"}
	for arch, triplet := range Triplets {
		if arch == runtime.GOARCH {
			c[triplet+"-gcc"] = "gcc"
			c["/usr/lib/"+triplet+"/libc.a"] = "libc6-dev"
		} else {
			c[triplet+"-gcc"] = "gcc-" + strings.ReplaceAll(triplet, "_", "-")
			c["/usr/"+triplet+"/lib/libc.a"] = "libc6-dev-" + arch + "-cross"
		}
	}
	return c
}

// Install installs missing packages. That needs root on Debian.
func Install(ctx context.Context, sets ...Commands) error {
	needed := map[string]bool{}
	for _, set := range sets {
		for name, pkg := range set {
			_, err := exec.LookPath(name)
			if filepath.IsAbs(name) {
				_, err = os.Stat(name)
			}
			if err != nil {
				needed[pkg] = true
			}
		}
	}
	missing := slices.Sorted(maps.Keys(needed))
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 {
		return errors.Errorf("install %s, or run as root on Debian", strings.Join(missing, " "))
	}
	progress.Printf("installing %s", strings.Join(missing, " "))
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if dt, err := cmd.CombinedOutput(); err != nil {
			return errors.Wrapf(err, "apt-get %s: %s", strings.Join(args, " "), bytes.TrimSpace(dt))
		}
	}
	return nil
}
