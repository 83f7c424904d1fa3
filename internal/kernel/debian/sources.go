package debian

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// codenames are the Debian suites whose archives a host may name; other
// distributions' suites are not Debian's whatever they are called.
var codenames = map[string]bool{
	"buster": true, "bullseye": true, "bookworm": true, "trixie": true, "forky": true, "duke": true,
	"oldoldstable": true, "oldstable": true, "stable": true, "testing": true, "unstable": true, "sid": true,
}

// Mirrors are where this host gets Debian from, best guess first. The URIs
// are as apt wants them and may hold credentials: they go into apt's
// configuration and nowhere else.
type Mirrors struct {
	Main     []string // the archive with bookworm, trixie …
	Security []string // the archive with bookworm-security …
}

// source is one line or stanza of apt's, as far as it matters here.
type source struct {
	uris, suites, components []string
	debianKey                bool // signed by Debian's own keyring
}

// HostMirrors reads the host's apt sources below root (its /), both the
// one-line and the deb822 form, and picks Debian's own archives out of them.
// No mirror is an empty result, not an error.
func HostMirrors(root fs.FS) (Mirrors, error) {
	names := []string{"etc/apt/sources.list"}
	for _, pat := range []string{"etc/apt/sources.list.d/*.list", "etc/apt/sources.list.d/*.sources"} {
		m, err := fs.Glob(root, pat)
		if err != nil {
			return Mirrors{}, err
		}
		names = append(names, m...)
	}
	var all []source
	for _, n := range names {
		b, err := fs.ReadFile(root, n)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			continue
		case err != nil:
			return Mirrors{}, fmt.Errorf("reading apt's sources: %w", err)
		}
		if path.Ext(n) == ".sources" {
			all = append(all, parseStanzas(b)...)
		} else {
			all = append(all, parseLines(b)...)
		}
	}
	// Debian's own key says Debian's archive; a foreign one may well call
	// its suite "bookworm" too.
	sort.SliceStable(all, func(i, j int) bool { return all[i].debianKey && !all[j].debianKey })
	return pick(all), nil
}

func pick(all []source) Mirrors {
	var m Mirrors
	for _, s := range all {
		if !contains(s.components, "main") {
			continue
		}
		for _, suite := range s.suites {
			base, security := strings.CutSuffix(suite, "-security")
			if !security {
				base, security = strings.CutSuffix(suite, "/updates")
			}
			for _, u := range s.uris {
				switch {
				case !codenames[base] || strings.HasPrefix(u, "cdrom:"):
				case security:
					m.Security = appendNew(m.Security, u)
				default:
					m.Main = appendNew(m.Main, u)
				}
			}
		}
	}
	if len(m.Security) == 0 {
		// Mirrors carry the two archives side by side under these names.
		for _, u := range m.Main {
			if b, ok := strings.CutSuffix(u, "/debian"); ok {
				m.Security = appendNew(m.Security, b+"/debian-security")
			}
		}
	}
	return m
}

func appendNew(list []string, uri string) []string {
	uri = strings.TrimRight(uri, "/")
	if uri == "" || contains(list, uri) {
		return list
	}
	return append(list, uri)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// parseLines reads "deb [options] URI suite component…" lines.
func parseLines(b []byte) []source {
	var out []source
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		rest = strings.TrimSpace(rest)
		var options string
		if strings.HasPrefix(rest, "[") {
			if options, rest, ok = strings.Cut(rest[1:], "]"); !ok {
				continue
			}
		}
		f := strings.Fields(rest)
		if len(f) < 2 || !usable(f[0]) {
			continue
		}
		out = append(out, source{
			uris: f[:1], suites: f[1:2], components: f[2:],
			debianKey: strings.Contains(options, "debian-archive"),
		})
	}
	return out
}

// parseStanzas reads the deb822 form.
func parseStanzas(b []byte) []source {
	var out []source
	fields := map[string]string{}
	flush := func() {
		types := strings.Fields(fields["types"])
		s := source{
			suites: strings.Fields(fields["suites"]), components: strings.Fields(fields["components"]),
			debianKey: strings.Contains(fields["signed-by"], "debian-archive"),
		}
		for _, u := range strings.Fields(fields["uris"]) {
			if usable(u) {
				s.uris = append(s.uris, u)
			}
		}
		if contains(types, "deb") && len(s.uris) > 0 && !strings.EqualFold(fields["enabled"], "no") {
			out = append(out, s)
		}
		clear(fields)
	}
	var last string
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			fields[last] += " " + strings.TrimSpace(line)
		default:
			key, value, ok := strings.Cut(line, ":")
			if ok {
				last = strings.ToLower(strings.TrimSpace(key))
				fields[last] = strings.TrimSpace(value)
			}
		}
	}
	flush()
	return out
}

// usable accepts what can stand in a sources file of ours without changing
// its meaning.
func usable(uri string) bool {
	if !strings.Contains(uri, ":") {
		return false
	}
	for i := range len(uri) {
		if c := uri[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"'[]\`, c) >= 0 {
			return false
		}
	}
	return true
}
