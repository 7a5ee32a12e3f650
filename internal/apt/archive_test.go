package apt

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseURIs(t *testing.T) {
	t.Parallel()
	pkgs, err := parseURIs([]byte(`'http://deb.debian.org/debian/pool/main/z/zlib/zlib1g_1.2.13.dfsg-1_arm64.deb' zlib1g_1%3a1.2.13.dfsg-1_arm64.deb 82744 SHA256:ab
'http://deb.debian.org/debian/pool/main/g/git/git_2.39.5-0%2bdeb12u3_arm64.deb' git_1%3a2.39.5-0+deb12u3_arm64.deb 7152820 SHA256:cd

`))
	require.NoError(t, err)
	require.Equal(t, []Package{
		{Name: "git", Version: "1:2.39.5-0+deb12u3", Arch: "arm64", URL: "http://deb.debian.org/debian/pool/main/g/git/git_2.39.5-0%2bdeb12u3_arm64.deb", SHA256: "cd"},
		{Name: "zlib1g", Version: "1:1.2.13.dfsg-1", Arch: "arm64", URL: "http://deb.debian.org/debian/pool/main/z/zlib/zlib1g_1.2.13.dfsg-1_arm64.deb", SHA256: "ab"},
	}, pkgs)
	require.Equal(t, "git_1%3a2.39.5-0+deb12u3_arm64.deb", pkgs[0].File())
	require.Equal(t, "pkg:deb/debian/git@1%3A2.39.5-0%2Bdeb12u3?arch=arm64&distro=debian-12", pkgs[0].PURL())

	for _, line := range []string{
		"E: no such package\n",
		"'http://a/b_1_c.deb' b_1_c.deb 1 MD5Sum:ab\n",
		"'http://a/b.deb' b.deb 1 SHA256:ab\n",
	} {
		_, err := parseURIs([]byte(line))
		require.Error(t, err, line)
	}
}
