package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// The model of random graphs. It knows nothing of the solver, only what
// clients may rely on:
//
//   - A build is chained on each build whose client has received a result that is part
//     of what the build solves: an ancestor of the result of a definition, or any op
//     of an input of a frontend. A build that solves the same result is a stranger.
//   - The first build that offers a need of a step serves it. First come the builds
//     that have solved the step and on which a build of the step is chained, in the
//     order in which they solved it. Then come the builds of the step, by start.
//     Other builds are never asked.
//   - If no build offers a need, it is missing: a required need fails the step, an
//     optional one is absent.
//   - A step keeps what it saw until a build without cache runs it again.
//   - Other builds get a failure only while a build of the failed step is active.
//   - With evaluation ahead, what a build has solved lazily may also be built once
//     another build, whose result is part of it, evaluates or has evaluated. What may
//     be built counts as evaluating. It may be canceled at any time. Nothing starts
//     after an evaluation of such a build has failed.
//   - Nothing else is built.
//
// If builds end, or solve, while others evaluate, more than one outcome is correct,
// and the model has all of them.

type needKind string

const (
	secretAsFile needKind = "file"
	secretAsEnv  needKind = "env"
	sshAgent     needKind = "ssh"
)

// missing is what a step sees of an optional need that no build offers.
const missing = "-"

// cutOff is what a step sees of an agent whose build ends while it is used.
const cutOff = "cut"

// need is something that a step takes from a session.
type need struct {
	kind     needKind
	id       string
	optional bool
}

// offer is what a build must have for the need.
func (n need) offer() string {
	if n.kind == sshAgent {
		return "ssh"
	}
	return n.id
}

// missing is how the daemon reports that no build offers the need.
func (n need) missing() string {
	if n.kind == sshAgent {
		return "no SSH key"
	}
	return fmt.Sprintf("secret %s: not found", n.id)
}

func (n need) String() string {
	s := string(n.kind) + " " + n.id
	if n.optional {
		s += "?"
	}
	return s
}

// randomStep is one step of a build for one platform.
type randomStep struct {
	name     string
	build    *randomBuild
	platform string
	inputs   []*randomStep // the first is the root filesystem
	needs    []need
	delay    time.Duration
}

// closure returns the step and all its dependencies, inputs first.
func (s *randomStep) closure() []*randomStep {
	var out []*randomStep
	var walk func(*randomStep)
	walk = func(s *randomStep) {
		if slices.Contains(out, s) {
			return
		}
		for _, in := range s.inputs {
			walk(in)
		}
		out = append(out, s)
	}
	walk(s)
	return out
}

type randomBuild struct {
	index   int
	name    string
	eager   bool
	inputs  bool   // it solves a Dockerfile on its steps, and not the steps themselves
	noCache string // "", "own" or "all": which steps of its definitions run without cache
	offers  map[string]string
	parents []*randomBuild
	targets map[string]*randomStep // last step by platform
}

func (b *randomBuild) ignoresCache(s *randomStep) bool {
	return b.noCache == "all" || b.noCache == "own" && s.build == b
}

// takes reports if a result of another build is part of what the build solves.
func (b *randomBuild) takes(result *randomStep) bool {
	for _, s := range b.targets {
		if (b.inputs || s != result) && slices.Contains(s.closure(), result) {
			return true
		}
	}
	return false
}

// steps returns everything that is in the definitions of the build.
func (b *randomBuild) steps() []*randomStep {
	var out []*randomStep
	for _, s := range b.targets {
		for _, in := range s.closure() {
			if !slices.Contains(out, in) {
				out = append(out, in)
			}
		}
	}
	return out
}

type opKind string

const (
	opSolve    opKind = "solve"
	opEvaluate opKind = "evaluate"
	opReturn   opKind = "return"
	opKill     opKind = "kill" // the client of the build disconnects without notice
)

// how a client asks for an evaluation
var evaluations = []string{"Evaluate", "ReadFile", "StatFile"}

type randomOp struct {
	kind     opKind
	build    *randomBuild
	platform string        // of opEvaluate
	how      string        // of opEvaluate
	after    time.Duration // from the start of the round
	cancel   time.Duration // of opEvaluate: when it is canceled, or 0
}

// calm returns the graph without steps that are canceled while they run: it cancels no
// evaluation, and ends builds in separate rounds. Upstream's daemon sometimes keeps the
// result of such a step in use, and this daemon does not fix that.
func (g *randomGraph) calm() *randomGraph {
	calm := *g
	calm.rounds = nil
	for _, round := range g.rounds {
		var others, ends []randomOp
		for _, op := range round {
			op.cancel = 0
			if op.kind == opReturn || op.kind == opKill {
				ends = append(ends, op)
			} else {
				others = append(others, op)
			}
		}
		for _, ops := range [][]randomOp{others, ends} {
			if len(ops) > 0 {
				calm.rounds = append(calm.rounds, ops)
			}
		}
	}
	return &calm
}

func (op randomOp) String() string {
	s := fmt.Sprintf("%s %s", op.kind, op.build.name)
	if op.kind == opEvaluate {
		s += fmt.Sprintf(" for %s with %s", op.platform, op.how)
	}
	if op.after > 0 {
		s += fmt.Sprintf(" after %s", op.after)
	}
	if op.cancel > 0 {
		s += fmt.Sprintf(", canceled after %s", op.cancel)
	}
	return s
}

// randomGraph is a set of chained builds, and rounds of operations on them. The operations
// of a round run concurrently.
type randomGraph struct {
	ahead     bool // the daemon evaluates ahead
	seed      uint64
	number    int
	platforms []string
	builds    []*randomBuild
	steps     []*randomStep
	rounds    [][]randomOp
}

func chance(rnd *rand.Rand, p float64) bool {
	return rnd.Float64() < p
}

func pick[T any](rnd *rand.Rand, s []T) T {
	return s[rnd.IntN(len(s))]
}

// subset returns each element of s with probability p, and at least one.
func subset[T any](rnd *rand.Rand, s []T, p float64) []T {
	var out []T
	for _, v := range s {
		if chance(rnd, p) {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		out = append(out, pick(rnd, s))
	}
	return out
}

func millis(rnd *rand.Rand, n int) time.Duration {
	return time.Duration(rnd.IntN(n)) * time.Millisecond
}

var (
	randomPlatforms = []string{"linux/amd64", "linux/arm64", "linux/riscv64"}
	randomSecrets   = []string{"token", "key", "login"}
)

const maxRandomBuilds = 12

// randomOffer is the value that a build has for an id.
func randomOffer(id string, build int) string {
	return fmt.Sprintf("%s-of-b%d", id, build)
}

// newRandomGraph makes the graph with the given number in the series of a seed.
func newRandomGraph(seed uint64, number int) *randomGraph {
	rnd := rand.New(rand.NewPCG(seed, uint64(number))) //nolint:gosec // not for secrets
	g := &randomGraph{seed: seed, number: number, platforms: randomPlatforms[:1+rnd.IntN(len(randomPlatforms))]}
	n := 2 + min(rnd.IntN(maxRandomBuilds-1), rnd.IntN(maxRandomBuilds-1))
	for i := range n {
		g.addBuild(rnd, i)
	}
	g.addRounds(rnd)
	return g
}

func (g *randomGraph) addBuild(rnd *rand.Rand, i int) {
	b := &randomBuild{
		index:   i,
		name:    fmt.Sprintf("b%d", i),
		eager:   chance(rnd, 0.25),
		inputs:  chance(rnd, 0.3),
		offers:  map[string]string{},
		targets: map[string]*randomStep{},
	}
	if chance(rnd, 0.25) {
		b.noCache = pick(rnd, []string{"own", "all"})
	}
	for _, id := range append([]string{"ssh"}, randomSecrets...) {
		if chance(rnd, 0.4) {
			b.offers[id] = randomOffer(id, i)
		}
	}
	if i > 0 && chance(rnd, 0.2) { // this build solves the same as another one
		of := pick(rnd, g.builds)
		for _, platform := range slices.Sorted(maps.Keys(of.targets)) {
			if len(b.targets) == 0 || chance(rnd, 0.8) {
				b.targets[platform] = of.targets[platform]
			}
		}
		g.builds = append(g.builds, b)
		return
	}
	if i > 0 && chance(rnd, 0.9) {
		b.parents = subset(rnd, g.builds, 1/float64(i))
		rnd.Shuffle(len(b.parents), func(i, j int) { b.parents[i], b.parents[j] = b.parents[j], b.parents[i] })
		b.parents = b.parents[:min(len(b.parents), 3)]
	}
	for _, platform := range subset(rnd, g.platforms, 0.8) {
		var inputs []*randomStep
		for _, p := range b.parents {
			if s, ok := p.targets[platform]; ok {
				inputs = append(inputs, s)
			}
		}
		var last *randomStep
		for k := range 1 + rnd.IntN(2) {
			last = &randomStep{
				name:     fmt.Sprintf("%s.%s.%d", b.name, strings.TrimPrefix(platform, "linux/"), k),
				build:    b,
				platform: platform,
				inputs:   inputs,
				needs:    randomNeeds(rnd, b),
			}
			if chance(rnd, 0.3) {
				last.delay = millis(rnd, 200)
			}
			g.steps = append(g.steps, last)
			inputs = []*randomStep{last}
		}
		b.targets[platform] = last
	}
	g.builds = append(g.builds, b)
}

func randomNeeds(rnd *rand.Rand, b *randomBuild) []need {
	var needs []need
	for _, id := range subset(rnd, append([]string{"ssh"}, randomSecrets...), 0.4) {
		n := need{kind: sshAgent, id: "default", optional: chance(rnd, 0.5)}
		if id != "ssh" {
			n.kind, n.id = pick(rnd, []needKind{secretAsFile, secretAsEnv}), id
		}
		// in most cases, a build needs what it offers
		if _, ok := b.offers[id]; !ok && chance(rnd, 0.9) {
			n.optional = true
		}
		needs = append(needs, n)
	}
	return needs
}

// addRounds decides the operations on the builds. Rounds of solves have no other
// operations, so that only the order within a round is unknown.
func (g *randomGraph) addRounds(rnd *rand.Rand) {
	order := slices.Clone(g.builds)
	if chance(rnd, 0.2) { // children solve before their parents
		rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	var active []*randomBuild
	evaluated := map[*randomStep]bool{}
	evaluate := func() {
		var round []randomOp
		for range 1 + rnd.IntN(4) {
			b := pick(rnd, active)
			platforms := slices.DeleteFunc(slices.Clone(g.platforms), func(p string) bool { return b.targets[p] == nil })
			op := randomOp{kind: opEvaluate, build: b, platform: pick(rnd, platforms), how: pick(rnd, evaluations)}
			if chance(rnd, 0.3) {
				op.after = millis(rnd, 100)
			}
			if chance(rnd, 0.1) {
				op.cancel = millis(rnd, 300) + time.Millisecond
			}
			if b.eager && op.cancel > 0 {
				op.cancel = 0
			}
			evaluated[b.targets[op.platform]] = true
			round = append(round, op)
		}
		if chance(rnd, 0.2) {
			b := pick(rnd, active)
			evaluates := slices.ContainsFunc(round, func(op randomOp) bool { return op.build == b })
			op := randomOp{kind: opReturn, build: b, after: millis(rnd, 150)}
			if evaluates || chance(rnd, 0.5) {
				op.kind = opKill
			}
			round = append(round, op)
			active = slices.DeleteFunc(active, func(a *randomBuild) bool { return a == b })
		}
		g.rounds = append(g.rounds, round)
	}
	end := func() {
		b := pick(rnd, active)
		g.rounds = append(g.rounds, []randomOp{{kind: pick(rnd, []opKind{opReturn, opReturn, opKill}), build: b}})
		active = slices.DeleteFunc(active, func(a *randomBuild) bool { return a == b })
	}
	for len(order) > 0 {
		k := min(len(order), 1+rnd.IntN(3)*rnd.IntN(2))
		var round []randomOp
		for _, b := range order[:k] {
			round = append(round, randomOp{kind: opSolve, build: b})
			active = append(active, b)
		}
		g.rounds = append(g.rounds, round)
		order = order[k:]
		if chance(rnd, 0.15) && len(active) > 0 {
			evaluate()
		}
		if chance(rnd, 0.05) && len(active) > 1 {
			end()
		}
	}
	for i := 0; len(active) > 0 && i < 3+len(g.builds); i++ {
		if chance(rnd, 0.8) {
			evaluate()
		} else {
			end()
		}
	}
}

// expectation is what the model allows an evaluation to do.
type expectation struct {
	mustFail bool
	mayFail  bool
	errors   []string // one of them is in the error when mustFail
	gone     bool     // it may fail with the session of a client that was killed
}

// stepState is the state of a step in the model.
type stepState struct {
	seen     []map[string]bool     // values by need
	done     bool                  // it has run for sure
	maybe    bool                  // it may have run
	canceled bool                  // a run that was canceled may still be ending
	poisoned map[*randomBuild]bool // if it failed, active builds that keep the failure
	loaded   map[*randomBuild]bool // active builds that build it; true if that is certain
}

// randomModel follows a graph from round to round.
type randomModel struct {
	g      *randomGraph
	round  int
	solved map[*randomBuild]int // round in which an active build started and solved
	steps  map[*randomStep]*stepState
	reruns map[*randomStep]bool // steps that may run more than once

	// results that clients of active builds have, and builds that active builds are
	// chained on; true if that is certain
	results map[*randomBuild]map[*randomStep]bool
	bases   map[*randomBuild]map[*randomBuild]bool

	allowed   map[*randomBuild]map[*randomStep]bool // what may be built for a build
	evaluated map[*randomBuild]bool                 // builds that have evaluated
	failed    map[*randomBuild]bool                 // those of which an evaluation has failed
	started   int                                   // results that may have been evaluated ahead
}

func newRandomModel(g *randomGraph) *randomModel {
	m := &randomModel{
		g: g, solved: map[*randomBuild]int{}, steps: map[*randomStep]*stepState{}, reruns: map[*randomStep]bool{},
		results: map[*randomBuild]map[*randomStep]bool{}, bases: map[*randomBuild]map[*randomBuild]bool{},
		allowed: map[*randomBuild]map[*randomStep]bool{}, evaluated: map[*randomBuild]bool{}, failed: map[*randomBuild]bool{},
	}
	for _, b := range g.builds {
		m.end(b)
		m.allowed[b] = map[*randomStep]bool{}
	}
	for _, s := range g.steps {
		st := &stepState{poisoned: map[*randomBuild]bool{}, loaded: map[*randomBuild]bool{}}
		for range s.needs {
			st.seen = append(st.seen, map[string]bool{})
		}
		m.steps[s] = st
		m.reruns[s] = slices.ContainsFunc(g.builds, func(b *randomBuild) bool {
			return b.ignoresCache(s) && slices.Contains(b.steps(), s)
		}) || slices.ContainsFunc(s.inputs, func(in *randomStep) bool { return m.reruns[in] })
	}
	return m
}

// resolve returns what a need of a step may see now. At least one build of building runs
// the step; other builds have built it before.
func (m *randomModel) resolve(s *randomStep, n need, leaving map[*randomBuild]bool, building []*randomBuild) map[string]bool {
	st := m.steps[s]
	// the variant without cache has other builders
	remains := func(b *randomBuild) bool { return st.loaded[b] && !leaving[b] && !m.reruns[s] }
	chained := func(b, base *randomBuild) bool { return m.bases[b][base] && !leaving[b] }

	var lenders, builders []*randomBuild
	certain := map[*randomBuild]bool{} // to be asked as lender, and as builder
	for _, b := range m.g.builds {
		if _, ok := m.solved[b]; !ok || !slices.Contains(b.steps(), s) {
			continue
		}
		lends := false
		for _, j := range m.g.builds {
			_, loaded := st.loaded[j]
			if _, ok := m.bases[j][b]; ok && (loaded || slices.Contains(building, j)) {
				lends = true
				certain[b] = certain[b] || remains(j) && chained(j, b)
			}
		}
		if lends {
			lenders = append(lenders, b)
			certain[b] = certain[b] || !slices.ContainsFunc(building, func(j *randomBuild) bool { return !chained(j, b) })
		}
	}
	for _, b := range m.g.builds {
		if _, loaded := st.loaded[b]; loaded || slices.Contains(building, b) {
			builders = append(builders, b)
		}
	}

	out := map[string]bool{}
	found := false // true if certain
	ask := func(builds []*randomBuild, certain func(*randomBuild) bool) {
		slices.SortStableFunc(builds, func(a, b *randomBuild) int { return m.solved[a] - m.solved[b] })
		for i, b := range builds {
			if found && (i == 0 || m.solved[b] != m.solved[builds[i-1]]) {
				return
			}
			if v, ok := b.offers[n.offer()]; ok {
				out[v] = true
				if leaving[b] && n.kind == sshAgent {
					out[cutOff] = true
				}
				found = found || !leaving[b] && certain(b)
			}
		}
	}
	ask(lenders, func(b *randomBuild) bool { return certain[b] })
	ask(builders, func(b *randomBuild) bool { return remains(b) || len(building) == 1 && building[0] == b })
	if !found {
		out[missing] = true
	}
	return out
}

// resolveAhead is resolve for a step that other builds may also build, or build alone. Any
// of them can run it.
func (m *randomModel) resolveAhead(s *randomStep, n need, leaving map[*randomBuild]bool, building, ahead []*randomBuild) map[string]bool {
	out := map[string]bool{}
	for _, b := range slices.Concat(building, ahead) {
		for v := range m.resolve(s, n, leaving, []*randomBuild{b}) {
			out[v] = true
		}
	}
	return out
}

// aheadOf returns, for each step, the builds that may build it ahead of their clients in a
// round.
func (m *randomModel) aheadOf(round []randomOp) map[*randomStep][]*randomBuild {
	out := map[*randomStep][]*randomBuild{}
	if !m.g.ahead {
		return out
	}
	evaluates := map[*randomBuild]bool{}
	for b := range m.evaluated {
		evaluates[b] = true
	}
	for _, op := range round {
		if len(op.builds()) > 0 {
			evaluates[op.build] = true
		}
	}
	due := func(b *randomBuild, target *randomStep) bool {
		found := false
		for base, certain := range m.bases[b] {
			for _, result := range base.targets {
				if !b.inputs && target == result || !slices.Contains(target.closure(), result) {
					continue
				}
				if m.failed[base] && certain {
					return false
				}
				found = found || evaluates[base]
			}
		}
		return found
	}
	for changed := true; changed; {
		changed = false
		for _, b := range m.g.builds {
			if _, ok := m.solved[b]; !ok || b.eager {
				continue
			}
			for _, target := range b.targets {
				if slices.Contains(out[target], b) || !due(b, target) {
					continue
				}
				m.started++
				evaluates[b], changed = true, true
				for _, s := range target.closure() {
					if !slices.Contains(out[s], b) {
						out[s] = append(out[s], b)
					}
				}
			}
		}
	}
	return out
}

// chain chains b on the builds whose results it uses, or may receive in this round.
func (m *randomModel) chain(b *randomBuild, certain bool, leaving, solving map[*randomBuild]bool) {
	for _, base := range m.g.builds {
		if _, ok := m.solved[base]; !ok || base == b {
			continue
		}
		for _, result := range base.targets {
			got, ok := m.results[base][result]
			if !b.takes(result) || !ok && !solving[base] {
				continue
			}
			m.bases[b][base] = m.bases[b][base] || got && certain && !leaving[base]
		}
	}
}

// start begins a round, and returns what each of its operations may do.
func (m *randomModel) start(round []randomOp) []expectation {
	m.round++
	leaving, solving := map[*randomBuild]bool{}, map[*randomBuild]bool{}
	for _, op := range round {
		switch op.kind {
		case opSolve:
			m.solved[op.build] = m.round
			solving[op.build] = true
		case opReturn, opKill:
			leaving[op.build] = true
		case opEvaluate:
			if m.solvesAgain(op) {
				solving[op.build] = true
			}
		}
	}
	building := map[*randomStep][]*randomBuild{}
	for _, op := range round {
		if op.kind == opSolve || m.solvesAgain(op) {
			m.chain(op.build, op.kind == opSolve, leaving, solving)
		}
		for _, s := range op.builds() {
			if !slices.Contains(building[s], op.build) {
				building[s] = append(building[s], op.build)
			}
		}
	}

	ahead := m.aheadOf(round)
	for s, builds := range ahead {
		st := m.steps[s]
		st.canceled = st.canceled || !st.done || m.reruns[s]
		for _, b := range builds {
			m.allowed[b][s] = true
			if _, ok := st.loaded[b]; !ok {
				st.loaded[b] = false
			}
		}
	}
	mayFail, mustFail, gone := map[*randomStep]bool{}, map[*randomStep]bool{}, map[*randomStep]bool{}
	for _, s := range m.g.steps {
		st := m.steps[s]
		for _, b := range building[s] {
			m.allowed[b][s] = true
		}
		if st.canceled || slices.ContainsFunc(round, func(op randomOp) bool {
			return (op.cancel > 0 || leaving[op.build]) && slices.Contains(op.builds(), s)
		}) {
			m.cutOff(s, leaving)
		}
		if building[s] == nil && ahead[s] == nil || st.done && !m.reruns[s] {
			continue
		}
		possible := true
		for i, n := range s.needs {
			values := m.resolve(s, n, leaving, building[s])
			if ahead[s] != nil {
				values = m.resolveAhead(s, n, leaving, building[s], ahead[s])
			}
			for v := range values {
				if v != missing || n.optional {
					st.seen[i][v] = true
				}
			}
			if values[missing] && m.waitsForGone(s, leaving, building[s]) {
				gone[s] = true
			}
			if values[missing] && !n.optional {
				mayFail[s] = true
				possible = possible && len(values) > 1 // something else than missing
			}
		}
		if len(st.poisoned) > 0 {
			mayFail[s] = true
		}
		mustFail[s] = !possible && !st.maybe
		st.maybe = st.maybe || possible
	}

	out := make([]expectation, len(round))
	for i, op := range round {
		e := &out[i]
		for _, s := range op.builds() {
			e.mayFail = e.mayFail || mayFail[s]
			e.mustFail = e.mustFail || mustFail[s]
			e.gone = e.gone || gone[s]
			if mayFail[s] {
				for _, n := range s.needs {
					e.errors = append(e.errors, n.missing())
				}
			}
		}
		if op.cancel > 0 || leaving[op.build] {
			e.mayFail, e.mustFail = true, false
		}
		if e.mustFail {
			e.mayFail = true
		}
	}
	for _, op := range round {
		for _, s := range op.builds() {
			m.steps[s].loaded[op.build] = m.steps[s].loaded[op.build] || op.cancel == 0
		}
	}
	// a failure is kept by all that build the step
	maps.Copy(mayFail, gone)
	for s := range mayFail {
		for b := range m.steps[s].loaded {
			m.steps[s].poisoned[b] = true
		}
	}
	return out
}

// waitsForGone reports if a build may ask a client that leaves for what the step needs.
// Builds that are not chained on each other, and build a step together, do what
// upstream does: the daemon asks their sessions one after another, waits five seconds
// for one that has gone, and the last one decides what the error is, also where what the
// step needs is optional.
func (m *randomModel) waitsForGone(s *randomStep, leaving map[*randomBuild]bool, building []*randomBuild) bool {
	for b := range leaving {
		_, loaded := m.steps[s].loaded[b]
		if !loaded && !slices.Contains(building, b) {
			continue
		}
		if slices.ContainsFunc(building, func(j *randomBuild) bool { return j != b && !m.bases[j][b] }) {
			return true
		}
	}
	return false
}

// solvesAgain reports if an evaluation may have to solve first, because that has
// failed before.
func (m *randomModel) solvesAgain(op randomOp) bool {
	return op.kind == opEvaluate && op.build.eager && !m.results[op.build][op.build.targets[op.platform]]
}

// cutOff handles a step that may still be running after its evaluation was canceled: the
// agent that it uses can disappear before the step is killed. Upstream also runs a step
// without an optional agent if it was canceled while the client was asked for the agent,
// and keeps the result if the step ends before it is killed.
func (m *randomModel) cutOff(s *randomStep, leaving map[*randomBuild]bool) {
	for i, n := range s.needs {
		if n.kind == sshAgent && n.optional {
			m.steps[s].seen[i][missing] = true
		}
	}
	for b := range leaving {
		for i, n := range s.needs {
			if n.kind == sshAgent && m.steps[s].seen[i][b.offers[n.offer()]] {
				m.steps[s].seen[i][cutOff] = true
			}
		}
	}
}

// finish ends a round with the outcomes of its operations.
func (m *randomModel) finish(round []randomOp, succeeded []bool) {
	for i, op := range round {
		switch {
		case op.kind == opSolve:
			for _, s := range op.build.targets {
				m.results[op.build][s] = succeeded[i]
			}
		case m.solvesAgain(op):
			m.results[op.build][op.build.targets[op.platform]] = succeeded[i]
		}
		for _, s := range op.builds() {
			st := m.steps[s]
			if succeeded[i] {
				st.done = true
				st.loaded[op.build] = true
				st.canceled = st.canceled && m.reruns[s]
			} else if op.cancel > 0 && (!st.done || m.reruns[s]) {
				st.canceled = true
			}
		}
	}
	for i, op := range round {
		if len(op.builds()) > 0 {
			m.evaluated[op.build] = true
			m.failed[op.build] = m.failed[op.build] || op.kind == opEvaluate && op.cancel == 0 && !op.build.eager && !succeeded[i]
		}
		if op.kind == opReturn || op.kind == opKill {
			m.end(op.build)
		}
	}
}

// checkBuilt checks that only allowed steps were built for a build.
func (m *randomModel) checkBuilt(b *randomBuild, names []string) error {
	for _, name := range names {
		i := slices.IndexFunc(m.g.steps, func(s *randomStep) bool { return s.name == name })
		if i >= 0 && !m.allowed[b][m.g.steps[i]] {
			return errors.Errorf("step %s was built for %s, which nothing asked for", name, b.name)
		}
	}
	return nil
}

// end forgets a build that is no longer active.
func (m *randomModel) end(b *randomBuild) {
	delete(m.solved, b)
	delete(m.evaluated, b)
	delete(m.failed, b)
	m.results[b], m.bases[b] = map[*randomStep]bool{}, map[*randomBuild]bool{}
	for _, bases := range m.bases {
		delete(bases, b)
	}
	for _, st := range m.steps {
		delete(st.poisoned, b)
		delete(st.loaded, b)
	}
}

// builds returns the steps that the operation builds, inputs first.
func (op randomOp) builds() []*randomStep {
	switch {
	case op.kind == opEvaluate && op.build.targets[op.platform] != nil:
		return op.build.targets[op.platform].closure()
	case op.kind == opSolve && op.build.eager:
		return op.build.steps()
	}
	return nil
}

// dot draws the graph, for Graphviz.
func (g *randomGraph) dot(m *randomModel, failure string) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "// -seed %d -graph %d\n", g.seed, g.number)
	fmt.Fprintf(&sb, "digraph {\n  rankdir=BT\n  node [shape=box, fontname=monospace]\n  label=%q\n", failure)
	for _, b := range g.builds {
		kind := "lazy"
		if b.eager {
			kind = "eager"
		}
		if b.inputs {
			kind += " by inputs"
		}
		kind += " for " + targetNames(b)
		var offers []string
		for _, id := range append([]string{"ssh"}, randomSecrets...) {
			if v, ok := b.offers[id]; ok {
				offers = append(offers, v)
			}
		}
		fmt.Fprintf(&sb, "  subgraph cluster_%s {\n    label=%q\n", b.name, fmt.Sprintf("%s %s no-cache=%q offers %s", b.name, kind, b.noCache, strings.Join(offers, " ")))
		for _, s := range g.steps {
			if s.build != b {
				continue
			}
			label := s.name
			for i, n := range s.needs {
				label += fmt.Sprintf("\n%s: %s", n, strings.Join(sortedKeys(m.steps[s].seen[i]), " or "))
			}
			fmt.Fprintf(&sb, "    %q [label=%q]\n", s.name, label)
		}
		sb.WriteString("  }\n")
		for _, s := range g.steps {
			if s.build == b {
				for _, in := range s.inputs {
					fmt.Fprintf(&sb, "  %q -> %q\n", s.name, in.name)
				}
			}
		}
	}
	sb.WriteString("}\n")
	for i, round := range g.rounds {
		for _, op := range round {
			fmt.Fprintf(&sb, "// round %d: %s\n", i+1, op)
		}
	}
	return sb.String()
}

// targetNames are the steps that a build solves.
func targetNames(b *randomBuild) string {
	var names []string
	for _, s := range b.targets {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func sortedKeys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
