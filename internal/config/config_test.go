package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/units"
)

func load(t *testing.T, text string) (Loaded, error) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(p, "/k")
}

func TestNoFileIsTheDefaults(t *testing.T) {
	l, err := Load(filepath.Join(t.TempDir(), "none"), "/k")
	if err != nil || l.DefaultImageName != "debian-bookworm" || l.SSHKeyPath != "/k" || l.Hypervisor != "auto" {
		t.Fatalf("%+v, %v", l.Config, err)
	}
	if p := Default("/k").check(); len(p) != 0 {
		t.Fatalf("the defaults do not pass their own check: %v", p)
	}
}

func TestValuesAndOrigins(t *testing.T) {
	l, err := load(t, "default_image_name = \"mine\"\n[vm_defaults]\nmemory = \"1.5GiB\"\n[limits]\nboot_timeout = \"5m\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if l.DefaultImageName != "mine" || l.VMDefaults.Memory != units.Size(3*units.GiB/2) || time.Duration(l.Limits.BootTimeout) != 5*time.Minute {
		t.Fatalf("%+v", l.Config)
	}
	got := map[string]Value{}
	for _, v := range l.Values() {
		got[v.Key] = v
		if v.Doc == "" {
			t.Errorf("%s has no doc", v.Key)
		}
	}
	if got["vm_defaults.memory"].Origin != l.Path || got["network"].Origin != "default" || got["vm_defaults.memory"].Value != "1.5G" {
		t.Fatalf("%+v", got)
	}
}

func TestEveryProblemIsNamedAtOnce(t *testing.T) {
	_, err := load(t, "defualt_image_name = \"x\"\nhypervisor = \"xen\"\n\n[vm_defaults]\ncpus = 900\nmemroy = \"1G\"\n")
	if errs.CodeOf(err) != "config_invalid" || errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		`line 1: unknown key "defualt_image_name" (did you mean "default_image_name"?)`,
		`line 6: unknown key "vm_defaults.memroy" (did you mean "vm_defaults.memory"?)`,
		`hypervisor = "xen"`, `vm_defaults.cpus = 900`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

func TestBadValuesNameTheirLine(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"\n[vm_defaults]\nmemory = \"lots\"\n", "line 3"},
		{"hypervisor = 3\n", "line 1"},
		{"a = [\n", "line"},
		{"default_image_name = \"\"\n", "default_image_name"},
		{"qemu_bin = \"a\\nb\"\n", "control character"},
	} {
		_, err := load(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func TestNotAFile(t *testing.T) {
	if _, err := Load(t.TempDir(), ""); errs.CodeOf(err) != "config_unreadable" {
		t.Fatal(err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("hypervisor = \"auto\"\n[limits]\nevents = 5\n")
	f.Add("[[vm_defaults]]\n")
	f.Fuzz(func(t *testing.T, s string) {
		l := Loaded{Config: Default("/k"), FromFile: map[string]bool{}}
		decode([]byte(s), &l)
		l.Config.check()
	})
}
