// Package graphload tells what the daemon does with lazy solves.
//
// By default, it loads the definition of a lazy Solve at once and registers its
// vertices with the build, which lends its session to the builds that are chained
// on its results, and evaluates the refs of a forced Solve concurrently.
// BUILDKIT_GRAPHLOAD in the environment of the daemon switches all of it off, or
// evaluation ahead of the client on.
package graphload

import (
	"os"
	"sync"

	"github.com/pkg/errors"
)

// EnvVar is the environment variable of the daemon.
const EnvVar = "BUILDKIT_GRAPHLOAD"

// Values of EnvVar. Not to set it is the same as on.
const (
	off   = "0"
	on    = "1"
	ahead = "ahead"
)

// Enabled reports if lazy solves enter the build graph. The environment is
// read once.
var Enabled = sync.OnceValue(func() bool {
	return os.Getenv(EnvVar) != off
})

// Ahead reports if results that are chained on a build are evaluated as soon as
// that build evaluates.
var Ahead = sync.OnceValue(func() bool {
	return os.Getenv(EnvVar) == ahead
})

// Validate returns an error if the environment has a value that means nothing.
func Validate() error {
	switch v := os.Getenv(EnvVar); v {
	case "", off, on, ahead:
		return nil
	default:
		return errors.Errorf("invalid value %q of %s: must be %s (off), %s (on, the default) or %s (on, and chained results are evaluated ahead of their client)", v, EnvVar, off, on, ahead)
	}
}
