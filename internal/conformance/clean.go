package conformance

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// marker is the environment variable that every process of a run inherits, so that
// killMarked finds it even after its parent is gone.
const marker = "GRAPHLOAD_CONFORMANCE"

// killMarked kills the processes of a run and their children, and waits for their
// end.
func killMarked(dir string) error {
	want := []byte(marker + "=" + dir)
	deadline := time.Now().Add(stopTimeout)
	for {
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return errors.WithStack(err)
		}
		parents := map[int]int{}
		found := map[int]struct{}{}
		for _, e := range procs {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			// a process that ends meanwhile is not an error
			ppid, running := parent(pid)
			if !running || pid == os.Getpid() {
				continue
			}
			parents[pid] = ppid
			env, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
			if slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) }) {
				found[pid] = struct{}{}
			}
		}
		var kill []int
		for pid := range parents {
			for p := pid; p > 1; p = parents[p] {
				if _, ok := found[p]; ok {
					kill = append(kill, pid)
					break
				}
			}
		}
		if len(kill) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Errorf("processes %v did not end within %s of SIGKILL", kill, stopTimeout)
		}
		for _, pid := range kill {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return errors.Wrapf(err, "failed to kill process %d", pid)
			}
		}
		time.Sleep(20 * time.Millisecond) // they are not our children
	}
}

// parent returns the parent of a process, and whether the process still runs.
func parent(pid int) (int, bool) {
	dt, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	// the name, in parentheses, can include spaces
	fields := strings.Fields(string(dt[bytes.LastIndexByte(dt, ')')+1:]))
	if len(fields) < 2 || fields[0] == "Z" {
		return 0, false
	}
	ppid, err := strconv.Atoi(fields[1])
	return ppid, err == nil
}

// clean ends the processes of a run, if dir is its folder, unmounts what is
// below dir and removes it.
func clean(dir string) error {
	if err := killMarked(dir); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return errors.WithStack(err)
	}
	for _, m := range slices.Backward(mounts) { // the last one first
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return errors.Wrapf(err, "failed to unmount %s", m.Mountpoint)
		}
	}
	return errors.WithStack(os.RemoveAll(dir))
}
