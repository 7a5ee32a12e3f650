// Package graphload tells what the daemon does with lazy solves.
//
// By default, it loads the definition of a lazy Solve at once and registers its
// vertices with the build, which lends its session to the builds that are chained
// on its results, and evaluates the refs of a forced Solve concurrently.
// BUILDKIT_GRAPHLOAD=0 in the environment of the daemon switches all of it off.
package graphload

import (
	"os"
	"sync"
)

// EnvVar is the environment variable of the daemon.
const EnvVar = "BUILDKIT_GRAPHLOAD"

const off = "0"

// Enabled reports if lazy solves enter the build graph. The environment is
// read once.
var Enabled = sync.OnceValue(func() bool {
	return os.Getenv(EnvVar) != off
})
