package debian

import (
	"cmp"
	"slices"
	"strings"

	"github.com/banger-dev/banger/internal/aptsource"
	"github.com/banger-dev/banger/internal/image"
)

// parseStatus reads dpkg's database: every package that is installed, by name.
func parseStatus(b []byte) []image.Package {
	var all []image.Package
	for _, s := range aptsource.Stanzas(b) {
		if s["package"] == "" || s["version"] == "" || !strings.HasSuffix(s["status"], " installed") {
			continue
		}
		all = append(all, image.Package{Name: s["package"], Version: s["version"], Arch: s["architecture"]})
	}
	slices.SortFunc(all, func(a, b image.Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	return all
}
