package debuggraph

import (
	"crypto/rand"
	"fmt"
	"html/template"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
)

// maxDrawn bounds the steps of a page. Browsers can draw more, but people cannot
// read more.
const maxDrawn = 5000

// maxChips bounds the sessions that are drawn per step.
const maxChips = 6

// page is the data of the template.
type page struct {
	Nonce         string
	Time          string
	Build         string // ref that the steps are filtered by
	Builds        []pageBuild
	Nodes         []pageNode
	Edges         []pageEdge
	Total         int
	Width, Height int
	Graph         *solver.Graph
}

type pageBuild struct {
	solver.GraphBuild
	Label string
	Bases []string // labels of the builds that it is chained on
	Hue   int
	Since string
}

type pageNode struct {
	X, Y   int
	Index  int
	Name   string
	Short  string
	Status solver.GraphStatus
	Chips  []chip
	More   int // sessions that are not drawn
}

// chip is a session that a step would ask.
type chip struct {
	Label string // of the build
	Hue   int
	Lent  bool
	X     int
}

type pageEdge struct {
	From, To int // indexes of steps
	Path     string
	Merge    bool
}

// buildLabel returns A to Z, then A1 to Z1 and so on.
func buildLabel(n int) string {
	label := string(rune('A' + n%26))
	if n >= 26 {
		label += fmt.Sprint(n / 26)
	}
	return label
}

// buildHue returns hues that differ for builds that follow each other.
func buildHue(n int) int {
	return (210 + n*137) % 360
}

func shorten(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// newPage lays out the graph. Builds keep their labels if the steps are filtered.
func newPage(g *solver.Graph, build string) *page {
	p := &page{Build: build, Time: g.Time.UTC().Format(time.RFC3339), Total: len(g.Steps), Graph: g}
	if len(g.Steps) > maxDrawn {
		// inputs come first, so the steps that are drawn have all their inputs
		p.Graph = &solver.Graph{Time: g.Time, Builds: g.Builds, Steps: g.Steps[:maxDrawn]}
	}
	steps := p.Graph.Steps
	byRef := map[string]int{}
	for i, b := range g.Builds {
		p.Builds = append(p.Builds, pageBuild{
			GraphBuild: b, Label: buildLabel(i), Hue: buildHue(i), Since: g.Time.Sub(b.Started).Round(100 * time.Millisecond).String(),
		})
		byRef[b.Ref] = i
	}
	for i, b := range p.Builds {
		for _, ref := range b.ChainedOn {
			if j, ok := byRef[ref]; ok {
				p.Builds[i].Bases = append(p.Builds[i].Bases, p.Builds[j].Label)
			}
		}
	}

	index := indexOf(steps)
	places, width, height := layout(steps)
	p.Width, p.Height = width, height
	for i, step := range steps {
		node := pageNode{X: places[i].x, Y: places[i].y, Index: i, Name: step.Name, Short: shorten(step.Name, 32), Status: step.Status}
		if node.Name == "" {
			node.Name = step.Digest.String()
			node.Short = shorten(node.Name, 32)
		}
		for n, session := range step.Sessions {
			if n == maxChips {
				node.More = len(step.Sessions) - n
				break
			}
			c := chip{Label: "?", X: 18 + n*19, Lent: session.Lent}
			if b, ok := byRef[session.Build]; ok {
				c.Label, c.Hue = p.Builds[b].Label, p.Builds[b].Hue
			}
			node.Chips = append(node.Chips, c)
		}
		p.Nodes = append(p.Nodes, node)
		for _, in := range step.Inputs {
			if j, ok := index[in]; ok {
				p.Edges = append(p.Edges, pageEdge{From: j, To: i, Path: curve(places[j], places[i])})
			}
		}
		if j, ok := index[step.MergedInto]; ok {
			p.Edges = append(p.Edges, pageEdge{From: i, To: j, Path: curve(places[i], places[j]), Merge: true})
		}
	}
	return p
}

// curve is the path from the right side of a step to the left side of another.
func curve(from, to position) string {
	x1, y1 := from.x+nodeWidth, from.y+nodeHeight/2
	x2, y2 := to.x, to.y+nodeHeight/2
	bend := max(gapX/2, (x2-x1)/2)
	return fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+bend, y1, x2-bend, y2, x2, y2)
}

func writePage(w http.ResponseWriter, g *solver.Graph, build string) {
	p := newPage(g, build)
	p.Nonce = rand.Text()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// default-src does not cover the last three
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+p.Nonce+"'; script-src 'nonce-"+p.Nonce+"'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := pageTemplate.Execute(w, p); err != nil {
		bklog.L.WithError(err).Debug("failed to write the graph")
	}
}

var pageTemplate = template.Must(template.New("graph").Parse(pageHTML))
