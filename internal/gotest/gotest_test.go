package gotest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCount(t *testing.T) {
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
		"not JSON\n",
	}, "\n")
	var out strings.Builder
	c := newCounter(&out)
	require.NoError(t, Read(strings.NewReader(events), c.add))
	require.Equal(t, &Counts{Passed: 1, Skipped: 1, Failed: []string{"TestB/sub", "TestB"}}, c.counts)
	require.Equal(t, "1 pass, 2 fail, 1 skip", c.counts.String())
	require.Equal(t, "why it failed\ndoes not compile\nnot JSON\n", out.String())
}
