package upgrade

import (
	"strings"
	"testing"
	"time"

	"github.com/graphload/graphload/internal/gotest"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func TestReportTrials(t *testing.T) {
	t.Parallel()
	ok := &Trial{Version: "v1.1.0", seams: 3, added: &gotest.Counts{Passed: 2}, all: &gotest.Counts{Passed: 9, Skipped: 1}, e2e: &gotest.Counts{Passed: 4}, took: time.Minute}
	var out strings.Builder
	require.NoError(t, Report(&out, []*Trial{ok}))
	require.Contains(t, out.String(), "v1.1.0   3      2 pass, 0 fail, 0 skip  9 pass, 0 fail, 1 skip  4 pass, 0 fail, 0 skip  1m0s  ok")

	bad := &Trial{Version: "v1.0.0", Stage: "vet", Err: errors.New("x")}
	out.Reset()
	require.EqualError(t, Report(&out, []*Trial{ok, bad}), "v1.0.0: vet failed")
	require.Contains(t, out.String(), "v1.0.0   0      not run")
}
