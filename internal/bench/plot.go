package bench

import (
	"image/color"
	"io"
	"time"

	"github.com/graphload/graphload/integration/testbed"
	"github.com/pkg/errors"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

var colors = map[testbed.Flavor]color.Color{
	testbed.Upstream:  color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff},
	testbed.Graphload: color.RGBA{R: 0x1f, G: 0x6f, B: 0xeb, A: 0xff},
}

// Plot draws the cost of rows that differ in the size of the graph, with the
// quartiles, as SVG.
func Plot(w io.Writer, title string, results []*Result) error {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = "steps of the graph"
	p.Y.Label.Text = "milliseconds"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for _, flavor := range testbed.Flavors {
		line, err := newSeries(results, flavor)
		if err != nil {
			return err
		}
		if err := line.addTo(p, string(flavor), colors[flavor]); err != nil {
			return err
		}
	}
	canvas := vgsvg.New(16*vg.Centimeter, 11*vg.Centimeter)
	p.Draw(draw.New(canvas))
	_, err := canvas.WriteTo(w)
	return errors.WithStack(err)
}

// series is the medians by graph size and how far the quartiles are from them.
type series struct {
	plotter.XYs
	plotter.YErrors
}

func newSeries(results []*Result, flavor testbed.Flavor) (s series, _ error) {
	for _, r := range results {
		if r.Steps == 0 {
			continue
		}
		q1, q2, q3 := quartiles(r.Samples[flavor])
		s.XYs = append(s.XYs, plotter.XY{X: float64(r.Steps), Y: milliseconds(q2)})
		s.YErrors = append(s.YErrors, struct{ Low, High float64 }{milliseconds(q2 - q1), milliseconds(q3 - q2)})
	}
	if len(s.XYs) < 2 {
		return s, errors.New("a plot needs rows of at least two sizes")
	}
	return s, nil
}

func (s series) addTo(p *plot.Plot, name string, c color.Color) error {
	line, points, err := plotter.NewLinePoints(s.XYs)
	if err != nil {
		return errors.WithStack(err)
	}
	bars, err := plotter.NewYErrorBars(s)
	if err != nil {
		return errors.WithStack(err)
	}
	line.Color, points.Color, bars.Color = c, c, c
	line.Width = vg.Points(1.5)
	points.Shape = draw.CircleGlyph{}
	p.Add(line, points, bars)
	p.Legend.Add(name, line, points)
	return nil
}

func milliseconds(ns float64) float64 {
	return ns / float64(time.Millisecond)
}
