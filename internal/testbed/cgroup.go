package testbed

import (
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// cgroup is the parent of the cgroups of a daemon's steps. A step outlives a daemon
// that is killed, and runc leaves the cgroup of a step that is killed.
type cgroup struct {
	name string
}

func newCgroup() *cgroup {
	c := &cgroup{name: "graphload-" + strings.ToLower(rand.Text())}
	OnAbort(c.remove)
	return c
}

// dirs are the folders of the cgroup: one, or with version 1 one for each
// controller.
func (c *cgroup) dirs() []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + c.name)
		dirs = append(dirs, found...)
	}
	return dirs
}

// remove kills the processes left in the cgroup and removes it.
func (c *cgroup) remove() error {
	for _, root := range c.dirs() {
		var subs []string
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.IsDir() {
				subs = append(subs, path)
			}
			return nil
		})
		if err != nil {
			return errors.WithStack(err)
		}
		for i := len(subs) - 1; i >= 0; i-- { // children before parents
			if err := killAll(filepath.Join(subs[i], "cgroup.procs")); err != nil {
				return err
			}
			if err := unix.Rmdir(subs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return errors.Wrapf(err, "failed to remove %s", subs[i])
			}
		}
	}
	return nil
}

// killAll kills the processes that a cgroup.procs file lists, and returns when
// they have ended.
func killAll(procs string) error {
	dt, err := os.ReadFile(procs)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, field := range strings.Fields(string(dt)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return errors.WithStack(err)
		}
		if err := kill(pid); err != nil {
			return errors.Wrapf(err, "failed to kill process %d", pid)
		}
	}
	return nil
}

func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	for {
		// readable when the process has ended
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(stopTimeout.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.Errorf("did not end within %s of SIGKILL", stopTimeout)
		default:
			return nil
		}
	}
}
