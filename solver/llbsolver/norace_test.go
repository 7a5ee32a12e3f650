//go:build !race

package llbsolver

const raceEnabled = false
