// Command firstkey prints the comment of the first key of the SSH agent. Steps
// of tests run it to tell one agent from another.
package main

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh/agent"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "firstkey:", err)
		os.Exit(1)
	}
}

func run() error {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK")) //nolint:noctx // there is nothing to cancel it
	if err != nil {
		return err
	}
	defer conn.Close()
	keys, err := agent.NewClient(conn).List()
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return fmt.Errorf("the agent has no key")
	}
	fmt.Print(keys[0].Comment)
	return nil
}
