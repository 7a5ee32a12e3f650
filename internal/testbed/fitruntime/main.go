// Command fitruntime is runc for machines whose root does not have all
// capabilities. Docker gives a privileged container all that the kernel knows,
// and runc refuses to give what it does not have. What is missing is taken out
// of the configuration of the container.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "fitruntime:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if slices.Contains(args, "create") {
		bundle := "."
		for i, arg := range args {
			if arg == "--bundle" && i+1 < len(args) {
				bundle = args[i+1]
			}
		}
		if err := fit(filepath.Join(bundle, "config.json"), nested("process", "capabilities")); err != nil {
			return err
		}
	}
	// a process that joins a container has a file of its own
	for i, arg := range args {
		if (arg == "--process" || arg == "-p") && i+1 < len(args) {
			if err := fit(args[i+1], nested("capabilities")); err != nil {
				return err
			}
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return syscall.Exec(path, append([]string{"runc"}, args[1:]...), os.Environ())
}

// nested finds an object in a document.
func nested(keys ...string) func(map[string]any) map[string]any {
	return func(m map[string]any) map[string]any {
		for _, key := range keys {
			m, _ = m[key].(map[string]any) //nolint:errcheck // nil when it is not there
		}
		return m
	}
}

// fit removes the capabilities that this process does not have from the sets
// in a file.
func fit(path string, find func(map[string]any) map[string]any) error {
	dt, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := json.Unmarshal(dt, &doc); err != nil {
		return err
	}
	self, err := capability.NewPid2(0)
	if err != nil {
		return err
	}
	if err := self.Load(); err != nil {
		return err
	}
	has := map[string]bool{}
	for _, c := range capability.ListKnown() {
		has["CAP_"+strings.ToUpper(c.String())] = self.Get(capability.BOUNDING, c)
	}
	sets := find(doc)
	for name, set := range sets {
		if list, ok := set.([]any); ok {
			sets[name] = slices.DeleteFunc(list, func(v any) bool { return !has[fmt.Sprint(v)] })
		}
	}
	if dt, err = json.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(path, dt, 0o600)
}
