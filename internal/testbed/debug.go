package testbed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/pkg/errors"
)

// Debug returns the answer of a debug handler of the daemon.
func (d *Daemon) Debug(ctx context.Context, path string) (string, error) {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.DebugAddr)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://debug"+path, nil)
	if err != nil {
		return "", errors.WithStack(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	return string(dt), errors.WithStack(err)
}

// Heap runs the garbage collector of the daemon and returns the bytes in use.
func (d *Daemon) Heap(ctx context.Context) (float64, error) {
	// a sync.Pool drops its content at the second collection
	if _, err := d.Debug(ctx, "/debug/gc"); err != nil {
		return 0, err
	}
	profile, err := d.Debug(ctx, "/debug/pprof/heap?debug=1&gc=1")
	if err != nil {
		return 0, err
	}
	for sc := bufio.NewScanner(strings.NewReader(profile)); sc.Scan(); {
		var heap float64
		if n, _ := fmt.Sscanf(sc.Text(), "# HeapAlloc = %g", &heap); n == 1 {
			return heap, nil
		}
	}
	return 0, errors.New("the heap profile has no figure")
}
