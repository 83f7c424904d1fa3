package buildinfo_test

import (
	"path/filepath"
	"testing"

	"github.com/banger-dev/banger/internal/buildinfo"
)

func TestEveryBuildNamesItself(t *testing.T) {
	i := buildinfo.Get()
	if i.Version == "" || i.Version[0] == 'v' {
		t.Errorf("version %q, want a number without v, or dev", i.Version)
	}
	if i.Go == "" || i.OS == "" || i.Arch == "" || i.API == 0 {
		t.Errorf("incomplete: %+v", i)
	}
	if !filepath.IsAbs(buildinfo.Prefix()) {
		t.Errorf("prefix %q is not absolute", buildinfo.Prefix())
	}
}
