package audit

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/graphload/graphload/internal/upstream"
	"github.com/stretchr/testify/require"
)

var (
	testName  = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z]+)(/[^`]*)?`")
	testDecl  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	subtest   = regexp.MustCompile(`"/([a-z ]+)", func`)
	itemStart = regexp.MustCompile(`(?m)^(?:-|\d+\.) `)
)

// TestSecurityPage requires that every test named on the page about security exists.
func TestSecurityPage(t *testing.T) {
	t.Parallel()
	root, err := upstream.Root()
	require.NoError(t, err)
	dt, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	require.NoError(t, err)

	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "*_test.go")
	cmd.Dir = root
	out, err := cmd.Output()
	require.NoError(t, err)
	known := map[string]bool{}
	var tenants []string
	for _, file := range strings.Fields(string(out)) {
		src, err := os.ReadFile(filepath.Join(root, file))
		require.NoError(t, err)
		for _, m := range testDecl.FindAllSubmatch(src, -1) {
			known[string(m[1])] = true
		}
		if filepath.Base(file) == "tenants_test.go" {
			for _, m := range subtest.FindAllSubmatch(src, -1) {
				tenants = append(tenants, strings.ReplaceAll(string(m[1]), " ", "_"))
			}
		}
	}
	for _, item := range itemStart.Split(string(dt), -1)[1:] {
		item, _, _ = strings.Cut(item, "\n\n")
		require.Regexp(t, testName, item, "every statement of a list names what shows it")
	}
	named := testName.FindAllSubmatch(dt, -1)
	require.Greater(t, len(named), 30)
	for _, m := range named {
		name, sub := string(m[1]), strings.Split(string(m[2]), "/")
		require.True(t, known[name], "%s does not exist", name)
		if len(sub) == 3 {
			require.Equal(t, "TestTenants", name)
			require.Contains(t, []string{"upstream", "graphload"}, sub[1])
			require.True(t, slices.Contains(tenants, sub[2]), "%s has no %s, only %v", name, sub[2], tenants)
		}
	}
}
