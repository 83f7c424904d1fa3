package debian_test

import (
	"reflect"
	"testing"
	"testing/fstest"

	"github.com/banger-dev/banger/internal/kernel/debian"
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
		want  debian.Mirrors
	}{
		"one-line": {
			map[string]string{"sources.list": "# deb http://old.example/debian bookworm main\n" +
				"deb http://a.example/debian/ trixie main contrib\n" +
				"deb-src http://src.example/debian trixie main\n" +
				"deb [arch=amd64 signed-by=/k] https://user:pw@b.example/sec trixie-security main # note\n" +
				"deb cdrom:[x]/ trixie main\ndeb http://broken\n"},
			debian.Mirrors{Main: []string{"http://a.example/debian"}, Security: []string{"https://user:pw@b.example/sec"}},
		},
		"deb822": {
			map[string]string{"sources.list.d/debian.sources": "Types: deb deb-src\nURIs: http://a.example/debian\n mirror+file:/etc/apt/m\n" +
				"Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" +
				"Enabled: no\nTypes: deb\nURIs: http://off.example/debian-security\nSuites: bookworm-security\nComponents: main\n"},
			debian.Mirrors{
				Main:     []string{"http://a.example/debian", "mirror+file:/etc/apt/m"},
				Security: []string{"http://a.example/debian-security"},
			},
		},
		"others first": {
			map[string]string{
				"sources.list.d/a.list": "deb [signed-by=/x.gpg] http://third.example/apt bookworm main\n" +
					"deb http://docker.example/linux/debian bookworm stable\ndeb http://ubuntu.example/ubuntu noble-security main\n",
				"sources.list.d/z.sources": "Types: deb\nURIs: http://d.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
			},
			debian.Mirrors{
				Main:     []string{"http://d.example/debian", "http://third.example/apt"},
				Security: []string{"http://d.example/debian-security"},
			},
		},
		"none": {nil, debian.Mirrors{}},
	}
	for name, c := range cases {
		got, err := debian.HostMirrors(hostWith(c.files))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func FuzzHostMirrors(f *testing.F) {
	f.Add("deb [signed-by=x] http://a/debian bookworm main\n", "Types: deb\nURIs: http://a\nSuites: bookworm\nComponents: main\n")
	f.Add(" x\n", " continued\n\nTypes")
	f.Fuzz(func(t *testing.T, list, stanzas string) {
		m, err := debian.HostMirrors(hostWith(map[string]string{"sources.list": list, "sources.list.d/x.sources": stanzas}))
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
