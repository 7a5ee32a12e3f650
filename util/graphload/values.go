package graphload

import (
	"os"
	"sync"

	"github.com/pkg/errors"
)

// Values of EnvVar beside off. Not to set it is the same as on.
const (
	on    = "1"
	ahead = "ahead"
)

// Ahead reports if results that are chained on a build are evaluated as soon as
// that build evaluates. The environment is read once.
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
