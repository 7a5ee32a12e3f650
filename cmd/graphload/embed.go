package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/graphload/graphload/internal/assemble"
	"github.com/graphload/graphload/internal/embed"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

func embedCommand() *cli.Command {
	return &cli.Command{
		Name:      "embed",
		Usage:     "make a Go program that requires BuildKit use the assembled tree of the release that its go.mod names",
		ArgsUsage: "DIR",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "undo", Usage: "remove the lines that embed added to go.mod"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() != 1 {
				return errors.New("name one folder that has the go.mod of a program, as in graphload embed ../program")
			}
			if releaseFlag(cmd) != "" {
				return errors.New("the go.mod of the program says which release it needs: leave --release out")
			}
			dir := cmd.Args().First()
			if cmd.Bool("undo") {
				return undoEmbed(os.Stdout, dir)
			}
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			_, err = embedTree(ctx, os.Stdout, opt.Root, dir)
			return err
		},
	}
}

// embedTree makes the program in dir use the tree of the release that it requires, and
// says what to run next.
func embedTree(ctx context.Context, w io.Writer, root, dir string) (*assemble.Tree, error) {
	p, err := embed.Open(dir)
	if err != nil {
		return nil, err
	}
	change, changed, err := embed.Into(ctx, root, p)
	if err != nil {
		return nil, err
	}
	t := change.Tree
	kind := "a path relative to it, as it is inside this repository"
	if filepath.IsAbs(change.Replace) {
		kind = "an absolute path"
	}
	verb := "now replaces"
	if !changed {
		verb = "already replaces"
	}
	fmt.Fprintf(w, "%s %s BuildKit %s by %s, %s.\n", filepath.Join(p.Dir, "go.mod"), verb, t.Version, change.Replace, kind)
	for _, mod := range change.Excludes {
		fmt.Fprintf(w, "It excludes %s, as BuildKit does.\n", mod)
	}
	for _, mod := range change.Used {
		fmt.Fprintf(w, "It does not exclude %s, which BuildKit excludes: the program uses it.\n", mod)
	}
	fmt.Fprintf(w, "\nNext:\n  cd %s\n", p.Dir)
	if p.Vendored {
		fmt.Fprintln(w, "  go mod vendor")
	}
	fmt.Fprintln(w, "  go build ./...")
	return t, nil
}

func undoEmbed(w io.Writer, dir string) error {
	p, err := embed.Open(dir)
	if err != nil {
		return err
	}
	removed, err := p.Undo()
	if err != nil {
		return err
	}
	if len(removed) == 0 {
		fmt.Fprintf(w, "%s has no line with %q: nothing to undo.\n", filepath.Join(p.Dir, "go.mod"), embed.Mark)
		return nil
	}
	if _, err := p.Write(); err != nil {
		return err
	}
	for _, line := range removed {
		fmt.Fprintf(w, "removed: %s\n", line)
	}
	fmt.Fprintf(w, "\nNext, for upstream's BuildKit and its checksum:\n  cd %s\n  go mod tidy\n", p.Dir)
	if p.Vendored {
		fmt.Fprintln(w, "  go mod vendor")
	}
	return nil
}
