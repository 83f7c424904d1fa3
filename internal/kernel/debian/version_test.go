package debian_test

import (
	"testing"

	"github.com/banger-dev/banger/internal/kernel/debian"
)

func TestVersionsSortAsDpkgDoes(t *testing.T) {
	inOrder := []string{"6.1~rc1", "6.1", "6.12.99-1~deb12u1", "6.12.99-1", "6.12.113-1~deb12u1", "6.12.117-1", "6.12.117-1+b1", "6.12.117a-1", "1:0.1"}
	for i, a := range inOrder {
		for j, b := range inOrder {
			got := debian.CompareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare(%s, %s) = %d", a, b, got)
			}
		}
	}
}
