package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/graphload/graphload/internal/bench"
	"github.com/graphload/graphload/internal/testbed"
	"github.com/moby/buildkit/client"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func clientsCommand() *cli.Command {
	return &cli.Command{
		Name:  "clients",
		Usage: "compare a client that orders evaluations itself with one that relies on the daemon",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "runs of each client"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) (retErr error) {
			d, err := testbed.StartDaemon(ctx, testbed.DaemonOptions{Flavor: testbed.Graphload})
			if err != nil {
				return err
			}
			defer closeLast(d, &retErr)
			c, err := client.New(ctx, d.Addr)
			if err != nil {
				return errors.WithStack(err)
			}
			defer c.Close()

			tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(tw, "TARGETS\tORDERED CLIENT\tRELYING CLIENT\tTIMES AS FAST")
			for _, g := range bench.Graphs {
				var times [2][]time.Duration
				for range cmd.Int("rounds") {
					for i, ordered := range []bool{true, false} {
						took, err := g.Client(ctx, c, ordered)
						if err != nil {
							return errors.Wrap(err, g.Name)
						}
						times[i] = append(times[i], took)
					}
				}
				ordered, relying := medianOf(times[0]), medianOf(times[1])
				progressf("%s: %s and %s", g.Name, ordered.Round(time.Millisecond), relying.Round(time.Millisecond))
				fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f\n", g.Name, ordered.Round(10*time.Millisecond), relying.Round(10*time.Millisecond), float64(ordered)/float64(relying))
			}
			return errors.WithStack(tw.Flush())
		},
	}
}
