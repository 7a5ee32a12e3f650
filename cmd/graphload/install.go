package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/graphload/graphload/internal/release"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
)

// installFiles are the files of an installation other than binaries. Those of
// systemd name the prefix.
func installFiles(root, prefix string) ([]release.File, error) {
	files := []release.File{
		{Name: "share/doc/graphload/LICENSE", Path: filepath.Join(root, "LICENSE"), Mode: 0o644},
	}
	for _, name := range []string{"buildkit.service", "buildkit.socket"} {
		dt, err := os.ReadFile(filepath.Join(root, "packaging", "systemd", name))
		if err != nil {
			return nil, errors.WithStack(err)
		}
		dt = bytes.ReplaceAll(dt, []byte("@PREFIX@"), []byte(prefix))
		files = append(files, release.File{Name: "lib/systemd/system/" + name, Data: dt, Mode: 0o644})
	}
	return files, nil
}

func installFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "prefix", Value: "/usr/local", Usage: "folder with bin, lib and share"},
		&cli.StringFlag{Name: "destdir", Usage: "put in front of the prefix, for packages"},
	}
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "build for this machine and install binaries, systemd units and the license",
		Flags: append(installFlags(), &cli.BoolFlag{Name: "no-build", Usage: "use the binaries in bin as they are"}),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			dir, err := binDir(opt, false)
			if err != nil {
				return err
			}
			if !cmd.Bool("no-build") {
				if _, err := buildBinaries(ctx, opt, false); err != nil {
					return err
				}
			}
			return install(opt.Root, dir, cmd.String("destdir"), cmd.String("prefix"))
		},
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "remove what install has installed; the state of the daemon stays",
		Flags: installFlags(),
		Action: func(_ context.Context, cmd *cli.Command) error {
			opt, err := options(cmd)
			if err != nil {
				return err
			}
			return uninstall(opt.Root, cmd.String("destdir"), cmd.String("prefix"))
		},
	}
}

// installation lists all files of an installation from the binaries in bin.
func installation(root, bin, prefix string) ([]release.File, error) {
	if !filepath.IsAbs(prefix) {
		return nil, errors.Errorf("prefix %s is not absolute", prefix)
	}
	files, err := installFiles(root, filepath.Clean(prefix))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		files = append(files, release.File{Name: "bin/" + name, Path: filepath.Join(bin, name), Mode: 0o755})
	}
	return files, nil
}

func install(root, bin, destdir, prefix string) error {
	files, err := installation(root, bin, prefix)
	if err != nil {
		return err
	}
	for _, f := range files {
		dt := f.Data
		if f.Path != "" {
			if dt, err = os.ReadFile(f.Path); err != nil {
				return errors.WithStack(err)
			}
		}
		dst := filepath.Join(destdir, prefix, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return errors.WithStack(err)
		}
		// in one step, as a daemon may be running from the file
		tmp := dst + ".tmp"
		if err := os.WriteFile(tmp, dt, f.Mode); err != nil {
			return errors.WithStack(err)
		}
		if err := os.Chmod(tmp, f.Mode); err != nil { // the umask does not apply
			return errors.WithStack(err)
		}
		if err := os.Rename(tmp, dst); err != nil {
			return errors.WithStack(err)
		}
		progressf("%s", dst)
	}
	return nil
}

func uninstall(root, destdir, prefix string) error {
	files, err := installation(root, "", prefix)
	if err != nil {
		return err
	}
	for _, f := range files {
		dst := filepath.Join(destdir, prefix, filepath.FromSlash(f.Name))
		if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.WithStack(err)
		}
	}
	// folders go when nothing else is in them
	for _, dir := range slices.Backward([]string{"share", "share/doc", "share/doc/graphload"}) {
		os.Remove(filepath.Join(destdir, prefix, dir))
	}
	return nil
}
