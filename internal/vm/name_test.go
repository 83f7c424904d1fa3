package vm

import (
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
)

func TestNamesAreDNSLabels(t *testing.T) {
	for _, name := range []string{"web", "a", "web-1", "1a", strings.Repeat("a", 63), "deadbeef"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q refused: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "-a", "a-", "Web", "a_b", "a.b", "a b", "é", "a\n", "..", "/etc", "a/b", "$(x)", "123", strings.Repeat("a", 64),
		"0123456789abcdef", "a\x00",
	} {
		err := CheckName(name)
		if errs.CodeOf(err) != "vm_name_invalid" || errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSuggestedNamesAreValid(t *testing.T) {
	for bad, want := range map[string]string{"My Web!": "my-web", "a_b": "a-b", "-x-": "x", "Web.App": "web-app", "!!": "", "123": ""} {
		if got := suggestName(bad); got != want {
			t.Errorf("%q: %q, want %q", bad, got, want)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"web", "Web", "0123456789abcdef", "a..b", "ä-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) == nil && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Fatalf("%q passed", name)
		}
		if s := suggestName(name); s != "" && CheckName(s) != nil {
			t.Fatalf("%q suggests %q, which is refused", name, s)
		}
	})
}

func TestMadeUpNamesAreValidAndFree(t *testing.T) {
	seen := map[string]bool{}
	for range 3000 {
		n := makeName(func(n string) bool { return seen[n] })
		if seen[n] || CheckName(n) != nil {
			t.Fatalf("%q: taken %v, %v", n, seen[n], CheckName(n))
		}
		seen[n] = true
	}
}

func TestDistanceCountsWhatFingersGetWrong(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"web", "web", 0}, {"wbe", "web", 1}, {"we", "web", 1}, {"webb", "web", 1}, {"", "abc", 3}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
