// Package graphload tells if lazy solves enter the build graph.
//
// With it, the daemon loads the definition of a lazy Solve at once and
// registers its vertices with the build, evaluates the refs of a forced Solve
// concurrently, and asks every session of a step before it does without an
// optional SSH agent or a registry login. BUILDKIT_GRAPHLOAD=0 in the
// environment of the daemon switches all of it off.
package graphload

import (
	"os"
	"sync"
)

// EnvVar is the environment variable of the daemon that switches lazy loading
// off when it is set to 0.
const EnvVar = "BUILDKIT_GRAPHLOAD"

// Enabled reports if lazy solves enter the build graph. The environment is
// read once.
var Enabled = sync.OnceValue(func() bool {
	return os.Getenv(EnvVar) != "0"
})
