// Command fitruntime is runc for machines whose root does not have all
// capabilities, and for a runc that is older than the engine. Docker asks for all
// capabilities that the kernel knows for a privileged container, and for namespaces
// that a recent runc knows. runc refuses what it cannot provide, so fitruntime
// removes that from the configuration of the container.
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
		config := filepath.Join(bundle, "config.json")
		if err := fit(config, nested("process", "capabilities")); err != nil {
			return err
		}
		if err := fitNamespaces(config); err != nil {
			return err
		}
	}
	// runc exec reads the configuration of a process from a file
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

// fitNamespaces removes the namespaces that runc does not know from the configuration
// of a container.
func fitNamespaces(path string) error {
	out, err := exec.Command("runc", "features").Output() //nolint:noctx // only prints
	if err != nil {
		return fmt.Errorf("runc features: %w", err)
	}
	var features struct{ Linux struct{ Namespaces []any } }
	if err := json.Unmarshal(out, &features); err != nil {
		return err
	}
	return edit(path, func(doc map[string]any) {
		linux := nested("linux")(doc)
		if list, ok := linux["namespaces"].([]any); ok {
			linux["namespaces"] = slices.DeleteFunc(list, func(v any) bool {
				ns, ok := v.(map[string]any)
				return ok && !slices.Contains(features.Linux.Namespaces, ns["type"])
			})
		}
	})
}

// nested finds an object in a document.
func nested(keys ...string) func(map[string]any) map[string]any {
	return func(m map[string]any) map[string]any {
		for _, key := range keys {
			m, _ = m[key].(map[string]any) //nolint:errcheck // nil if it is missing
		}
		return m
	}
}

// fit removes the capabilities that this process does not have from the sets
// in a file.
func fit(path string, find func(map[string]any) map[string]any) error {
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
	return edit(path, func(doc map[string]any) {
		sets := find(doc)
		for name, set := range sets {
			if list, ok := set.([]any); ok {
				sets[name] = slices.DeleteFunc(list, func(v any) bool { return !has[fmt.Sprint(v)] })
			}
		}
	})
}

// edit changes a JSON document in a file.
func edit(path string, change func(doc map[string]any)) error {
	dt, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := json.Unmarshal(dt, &doc); err != nil {
		return err
	}
	change(doc)
	if dt, err = json.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(path, dt, 0o600)
}
