// Package progress tells the user what a command is doing.
package progress

import (
	"fmt"
	"os"
)

// Printf prints a line to standard error.
func Printf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "=> "+format+"\n", args...)
}
