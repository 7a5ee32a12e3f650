package debuggraph

import (
	"cmp"
	"maps"
	"slices"

	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
)

// Sizes in pixels.
const (
	nodeWidth  = 230
	nodeHeight = 50
	gapX       = 50
	gapY       = 14
	groupGap   = 40

	// A long graph wraps like text, and a layer with many steps takes several
	// columns, so that a graph of thousands of steps keeps the shape of a screen.
	maxColumns = 16
	maxRows    = 24
)

// position is the place of a step, by its upper left corner.
type position struct {
	x, y int
}

// layout places the steps, which must be ordered with inputs first. It places inputs
// to the left of the steps that use them, and graphs that have no step in common below
// each other, large ones first. Steps without neighbors come last, side by side.
func layout(steps []solver.GraphStep) (places []position, width, height int) {
	places = make([]position, len(steps))
	index := indexOf(steps)
	var alone []int
	for _, group := range groups(steps, index) {
		if len(group) == 1 {
			alone = append(alone, group[0])
			continue
		}
		w, h := layoutGroup(steps, index, group, places, height)
		width, height = max(width, w), height+h+groupGap
	}
	if len(alone) > 0 {
		columns := max(width/(nodeWidth+gapX), maxColumns/2)
		rows := (len(alone) + columns - 1) / columns
		for n, i := range alone {
			places[i] = position{x: n % columns * (nodeWidth + gapX), y: height + n/columns*(nodeHeight+gapY)}
		}
		width = max(width, min(columns, len(alone))*(nodeWidth+gapX)-gapX)
		height += rows*(nodeHeight+gapY) - gapY + groupGap
	}
	return places, width, max(0, height-groupGap)
}

// groups returns the indexes of steps that are connected, the largest group
// first.
func groups(steps []solver.GraphStep, index map[digest.Digest]int) [][]int {
	root := make([]int, len(steps))
	var find func(int) int
	find = func(i int) int {
		if root[i] != i {
			root[i] = find(root[i])
		}
		return root[i]
	}
	for i := range steps {
		root[i] = i
	}
	for i, step := range steps {
		for _, in := range links(step) {
			if j, ok := index[in]; ok {
				a, b := find(i), find(j)
				root[max(a, b)] = min(a, b)
			}
		}
	}
	members := map[int][]int{}
	for i := range steps {
		members[find(i)] = append(members[find(i)], i)
	}
	var out [][]int
	for _, r := range slices.Sorted(maps.Keys(members)) {
		out = append(out, members[r])
	}
	slices.SortStableFunc(out, func(a, b []int) int { return cmp.Compare(len(b), len(a)) })
	return out
}

// links are the steps that belong to the same graph as the step.
func links(step solver.GraphStep) []digest.Digest {
	out := append(slices.Clone(step.Inputs), step.Parents...)
	if step.MergedInto != "" {
		out = append(out, step.MergedInto)
	}
	return out
}

func indexOf(steps []solver.GraphStep) map[digest.Digest]int {
	index := make(map[digest.Digest]int, len(steps))
	for i, step := range steps {
		index[step.Digest] = i
	}
	return index
}

// layoutGroup places a group below top.
func layoutGroup(steps []solver.GraphStep, index map[digest.Digest]int, group []int, places []position, top int) (width, height int) {
	layer := map[int]int{}
	var layers [][]int
	for _, i := range group {
		for _, in := range steps[i].Inputs {
			if j, ok := index[in]; ok && j < i {
				layer[i] = max(layer[i], layer[j]+1)
			}
		}
		for len(layers) <= layer[i] {
			layers = append(layers, nil)
		}
		layers[layer[i]] = append(layers[layer[i]], i)
	}

	// a step stands at the height of its inputs
	row := map[int]float64{}
	for _, members := range layers {
		for n, i := range members {
			sum, count := 0.0, 0
			for _, in := range steps[i].Inputs {
				if j, ok := index[in]; ok && j < i {
					sum, count = sum+row[j], count+1
				}
			}
			row[i] = float64(n)
			if count > 0 {
				row[i] = sum / float64(count)
			}
		}
		slices.SortStableFunc(members, func(a, b int) int { return cmp.Compare(row[a], row[b]) })
		for n, i := range members {
			row[i] = float64(n)
		}
	}

	// columns of bands
	column, bandTop, bandHeight := 0, top, 0
	for _, members := range layers {
		for chunk := range slices.Chunk(members, maxRows) {
			if column == maxColumns {
				bandTop, bandHeight, column = bandTop+bandHeight+groupGap, 0, 0
			}
			for n, i := range chunk {
				places[i] = position{x: column * (nodeWidth + gapX), y: bandTop + n*(nodeHeight+gapY)}
			}
			column++
			width = max(width, column*(nodeWidth+gapX)-gapX)
			bandHeight = max(bandHeight, len(chunk)*(nodeHeight+gapY)-gapY)
		}
	}
	return width, bandTop + bandHeight - top
}
