// Package graphload reads the switch for lazy solves.
//
// By default, the daemon loads the definition of a lazy Solve at once and registers
// its vertices with the build. The build lends its session to the builds that are
// chained on its results. The refs of a forced Solve are evaluated concurrently.
// BUILDKIT_GRAPHLOAD=0 in the environment of the daemon switches all of this off.
package graphload

import (
	"os"
	"sync"
)

// EnvVar is the environment variable of the daemon.
const EnvVar = "BUILDKIT_GRAPHLOAD"

const off = "0"

// Enabled reports if lazy solves are loaded into the build graph. The environment is
// read once.
var Enabled = sync.OnceValue(func() bool {
	return os.Getenv(EnvVar) != off
})
