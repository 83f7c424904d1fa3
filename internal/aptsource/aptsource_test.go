package aptsource_test

import (
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/banger-dev/banger/internal/aptsource"
)

func hostWith(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for n, s := range files {
		m["etc/apt/"+n] = &fstest.MapFile{Data: []byte(s)}
	}
	return m
}

func TestMirrorsComeFromTheHostsSources(t *testing.T) {
	cases := map[string]struct {
		files map[string]string
		want  aptsource.Mirrors
	}{
		"one-line": {
			map[string]string{"sources.list": "# deb http://old.example/debian bookworm main\n" +
				"deb http://a.example/debian/ trixie main contrib\n" +
				"deb-src http://src.example/debian trixie main\n" +
				"deb [arch=amd64 signed-by=/k] https://user:pw@b.example/sec trixie-security main # note\n" +
				"deb cdrom:[x]/ trixie main\ndeb http://broken\n"},
			aptsource.Mirrors{Main: []string{"http://a.example/debian"}, Security: []string{"https://user:pw@b.example/sec"}},
		},
		"deb822": {
			map[string]string{"m": "# best first\nhttps://listed.example/debian\tpriority:1\n", "sources.list.d/debian.sources": "Types: deb deb-src\nURIs: http://a.example/debian\n mirror+file:/etc/apt/m\n" +
				"Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" +
				"Enabled: no\nTypes: deb\nURIs: http://off.example/debian-security\nSuites: bookworm-security\nComponents: main\n"},
			aptsource.Mirrors{
				Main:     []string{"http://a.example/debian", "https://listed.example/debian"},
				Security: []string{"http://a.example/debian-security", "https://listed.example/debian-security"},
			},
		},
		"old security, files of apt's own first": {
			map[string]string{
				"sources.list.d/a.list": "deb http://late.example/debian bookworm main\n",
				"sources.list":          "deb http://s.example/sec buster/updates main\ndeb http://m.example/debian stable main\ndeb file:/srv/debian bookworm main\n",
			},
			aptsource.Mirrors{Main: []string{"http://m.example/debian", "http://late.example/debian"}, Security: []string{"http://s.example/sec"}},
		},
		"others first": {
			map[string]string{
				"sources.list.d/a.list": "deb [signed-by=/x.gpg] http://third.example/apt bookworm main\n" +
					"deb http://docker.example/linux/debian bookworm stable\ndeb http://ubuntu.example/ubuntu noble-security main\n",
				"sources.list.d/z.sources": "Types: deb\nURIs: http://d.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
			},
			aptsource.Mirrors{
				Main:     []string{"http://d.example/debian", "http://third.example/apt"},
				Security: []string{"http://d.example/debian-security"},
			},
		},
		"none": {nil, aptsource.Mirrors{}},
	}
	for name, c := range cases {
		got, err := aptsource.Host(hostWith(c.files))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func FuzzHostMirrors(f *testing.F) {
	f.Add("deb [signed-by=x] http://a/debian bookworm main\n", "Types: deb\nURIs: http://a\nSuites: bookworm\nComponents: main\n")
	f.Add(" x\n", " continued\n\nTypes")
	f.Fuzz(func(t *testing.T, list, stanzas string) {
		m, err := aptsource.Host(hostWith(map[string]string{"sources.list": list, "sources.list.d/x.sources": stanzas}))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range append(m.Main, m.Security...) {
			for i := range len(u) {
				if u[i] <= ' ' || u[i] == '[' || u[i] == '"' {
					t.Fatalf("%q would change apt's meaning", u)
				}
			}
		}
	})
}

func TestFindAsksTheEnvironmentFirst(t *testing.T) {
	host := hostWith(map[string]string{"sources.list": "deb http://h/debian bookworm main\n"})
	find := func(v string) (aptsource.Mirrors, error) {
		return aptsource.Find(host, func(k string) string {
			if k == aptsource.Env {
				return v
			}
			return ""
		})
	}
	if m, err := find(""); err != nil || len(m.Main) != 1 || m.Main[0] != "http://h/debian" {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := find("http://e/debian https://e/sec"); err != nil || m.Main[0] != "http://e/debian" || m.Security[0] != "https://e/sec" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"ftp://u:secret@e/debian", "http://u:secret@e/[x]", "nonsense"} {
		if _, err := find(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestCredentialsGo(t *testing.T) {
	if got := aptsource.Scrub("Err:1 https://u:secret@m/x 'http://a@b' plain@text"); got != "Err:1 https://m/x 'http://b' plain@text" {
		t.Error(got)
	}
	if got := aptsource.Public("https://u:secret@m/debian?token=x#y"); got != "https://m/debian" {
		t.Error(got)
	}
}

func FuzzStanzas(f *testing.F) {
	f.Add([]byte("Types: deb\nURIs: http://x\n y\n\n# c\nSuites: a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range aptsource.Stanzas(b) {
			for k := range s {
				if k != strings.ToLower(k) {
					t.Fatalf("key %q", k)
				}
			}
		}
		aptsource.Scrub(string(b))
	})
}
