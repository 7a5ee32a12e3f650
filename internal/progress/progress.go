// Package progress tells the user what is being done.
package progress

import (
	"fmt"
	"os"
)

// Printf prints a line to standard error.
func Printf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "=> "+format+"\n", args...)
}
