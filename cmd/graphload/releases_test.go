package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

func TestReadTests(t *testing.T) {
	t.Parallel()
	events := strings.Join([]string{
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestB/sub","Output":"why it failed\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestB/sub"}`,
		`{"Action":"fail","Package":"p","Test":"TestB"}`,
		`{"Action":"skip","Package":"p","Test":"TestC"}`,
		`{"Action":"fail","Package":"p"}`,
		`{"Action":"build-output","ImportPath":"q","Output":"does not compile\n"}`,
		`{"Action":"build-fail","ImportPath":"q"}`,
		`{"Action":"skip","Package":"no test files"}`,
		`not JSON`,
	}, "\n")
	var out strings.Builder
	counts := readTests(strings.NewReader(events), &out)
	require.Equal(t, &testCounts{passed: 1, skipped: 1, failed: []string{"TestB/sub", "TestB"}}, counts)
	require.Equal(t, "1 pass, 2 fail, 1 skip", counts.String())
	require.Equal(t, "why it failed\ndoes not compile\nnot JSON\n", out.String())
}

func TestReportTrials(t *testing.T) {
	t.Parallel()
	ok := &trial{version: "v1.1.0", seams: 3, added: &testCounts{passed: 2}, all: &testCounts{passed: 9, skipped: 1}, e2e: &testCounts{passed: 4}, took: time.Minute}
	var out strings.Builder
	require.NoError(t, reportTrials(&out, []*trial{ok}))
	require.Contains(t, out.String(), "v1.1.0   3      2 pass, 0 fail, 0 skip  9 pass, 0 fail, 1 skip  4 pass, 0 fail, 0 skip  1m0s  ok")

	bad := &trial{version: "v1.0.0", stage: "vet", err: errors.New("x")}
	out.Reset()
	require.EqualError(t, reportTrials(&out, []*trial{ok, bad}), "v1.0.0: vet failed")
	require.Contains(t, out.String(), "v1.0.0   0      not run")
}
