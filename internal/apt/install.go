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

// Commands are packages by the command, or file if it is a path, that tells if a
// package is there.
type Commands map[string]string

// What commands of this repository need on the machine.
var (
	// Tests are what the daemons and end-to-end tests run.
	Tests = Commands{
		"busybox":   "busybox-static",
		"git":       "git",
		"runc":      "runc",
		"ssh-agent": "openssh-client",
	}
	// Containerd is what BuildKit's harness starts for its containerd worker.
	Containerd = Commands{
		"containerd":              "containerd",
		"containerd-shim-runc-v2": "containerd",
	}
	// Units are what tests of systemd units and of the page of the build graph run.
	Units = Commands{
		"chromium":                "chromium",
		"systemd":                 "systemd",
		"systemd-analyze":         "systemd",
		"systemd-socket-activate": "systemd",
	}
	// Compilers are those for C of all architectures, and what they need.
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

// Install installs the packages that are not there, as root on Debian.
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
