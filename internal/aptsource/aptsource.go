// Package aptsource tells where this host gets Debian's packages from, by
// reading apt's sources in both of their forms. It fetches nothing, and checks
// no signatures: apt does, with Debian's keys, whatever the address.
package aptsource

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"sort"
	"strings"
)

// Env names an archive for hosts that have no Debian sources of their own: one
// URL, or two with the security archive second, parted by a space.
const Env = "BANGER_DEBIAN_MIRROR"

// Mirrors are where Debian comes from, best guess first. The addresses may
// hold credentials: they go into apt's configuration and nowhere else.
type Mirrors struct {
	Main     []string // the archive with bookworm, trixie …
	Security []string // the archive with bookworm-security …
}

// maxFile bounds what is read of one file.
const maxFile = 1 << 20

// suites are Debian's own; other distributions' suites are not Debian's
// whatever they are called.
var suites = strings.Fields("buster bullseye bookworm trixie forky duke sid unstable testing stable oldstable oldoldstable")

// How likely a source is Debian's archive: others use its suites' names too.
const (
	signedByDebian = iota
	looksLikeDebian
	anyOther
)

// source is one line or stanza, as far as it matters here.
type source struct {
	file                     string
	uris, suites, components []string
	signedBy                 string
}

// Find gives the archives that the environment names, else the host's. None is
// an empty result, not an error.
func Find(root fs.FS, getenv func(string) string) (Mirrors, error) {
	f := strings.Fields(getenv(Env))
	if len(f) == 0 {
		return Host(root)
	}
	m := Mirrors{Main: f[:1], Security: f[1:]}
	for _, u := range f {
		if p, err := url.Parse(u); err != nil || !usable(u) || (p.Scheme != "http" && p.Scheme != "https") || p.Host == "" {
			return Mirrors{}, fmt.Errorf("%s holds %q, which is no http or https address", Env, Scrub(u))
		}
	}
	return m, nil
}

// Host reads the sources of apt below root (the host's /).
func Host(root fs.FS) (Mirrors, error) {
	names := []string{"etc/apt/sources.list"}
	for _, pattern := range []string{"etc/apt/sources.list.d/*.sources", "etc/apt/sources.list.d/*.list"} {
		more, err := fs.Glob(root, pattern)
		if err != nil {
			return Mirrors{}, err
		}
		names = append(names, more...)
	}
	var all []source
	for _, n := range names {
		b, err := read(root, n)
		if err != nil {
			return Mirrors{}, err
		}
		parse := parseLines
		if path.Ext(n) == ".sources" {
			parse = parseStanzas
		}
		for _, s := range parse(b) {
			s.file = path.Base(n)
			s.uris = resolve(root, s.uris)
			all = append(all, s)
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].rank() < all[j].rank() })
	return pick(all), nil
}

// read gives a file's content, nothing for one that apt goes without too.
func read(root fs.FS, name string) ([]byte, error) {
	b, err := fs.ReadFile(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read apt's sources: %w", err)
	}
	return b[:min(len(b), maxFile)], nil
}

// resolve follows apt's lists of mirrors to what they list.
func resolve(root fs.FS, uris []string) []string {
	var out []string
	for _, u := range uris {
		file, ok := strings.CutPrefix(u, "mirror+file:")
		if !ok {
			out = append(out, u)
			continue
		}
		b, err := read(root, strings.TrimLeft(file, "/"))
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") && usable(f[0]) {
				out = append(out, f[0])
			}
		}
	}
	return out
}

func (s source) rank() int {
	switch {
	case strings.Contains(s.signedBy, "debian-archive"):
		return signedByDebian
	case s.signedBy == "" && (s.file == "sources.list" || s.file == "debian.sources"):
		return looksLikeDebian
	}
	return anyOther
}

// pick sorts the addresses by what they hold.
func pick(all []source) Mirrors {
	var m Mirrors
	for _, s := range all {
		if !slices.Contains(s.components, "main") {
			continue
		}
		for _, suite := range s.suites {
			base, security := strings.CutSuffix(suite, "-security")
			if !security {
				base, security = strings.CutSuffix(suite, "/updates")
			}
			if !slices.Contains(suites, base) {
				continue
			}
			for _, u := range s.uris {
				switch {
				case !strings.HasPrefix(u, "http:") && !strings.HasPrefix(u, "https:"):
				case security:
					m.Security = appendNew(m.Security, u)
				default:
					m.Main = appendNew(m.Main, u)
				}
			}
		}
	}
	if len(m.Security) == 0 {
		// mirrors carry the two archives side by side under these names
		for _, u := range m.Main {
			if base, ok := strings.CutSuffix(u, "/debian"); ok {
				m.Security = appendNew(m.Security, base+"/debian-security")
			}
		}
	}
	return m
}

func appendNew(list []string, uri string) []string {
	uri = strings.TrimRight(uri, "/")
	if uri == "" || slices.Contains(list, uri) {
		return list
	}
	return append(list, uri)
}

// parseLines reads the "deb [options] URI suite component…" form.
func parseLines(b []byte) []source {
	var all []source
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxFile+1)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, found := strings.Cut(rest[1:], "]")
			if !found {
				continue
			}
			for o := range strings.FieldsSeq(options) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 || !usable(f[0]) {
			continue
		}
		s.uris, s.suites, s.components = f[:1], f[1:2], f[2:]
		all = append(all, s)
	}
	return all
}

// parseStanzas reads the form with fields.
func parseStanzas(b []byte) []source {
	var all []source
	for _, f := range Stanzas(b) {
		if slices.Contains([]string{"no", "false", "0", "off", "without", "disable"}, strings.ToLower(f["enabled"])) ||
			!slices.Contains(strings.Fields(f["types"]), "deb") {
			continue
		}
		all = append(all, source{
			uris:   slices.DeleteFunc(strings.Fields(f["uris"]), func(u string) bool { return !usable(u) }),
			suites: strings.Fields(f["suites"]), components: strings.Fields(f["components"]), signedBy: f["signed-by"],
		})
	}
	return all
}

// Stanzas splits Debian's control data into paragraphs of fields, the names in
// lower case; continued lines are joined by newlines.
func Stanzas(b []byte) []map[string]string {
	var all []map[string]string
	cur, key := map[string]string{}, ""
	for line := range strings.SplitSeq(string(b)+"\n\n", "\n") {
		line = strings.TrimRight(line, "\r \t")
		switch {
		case line == "":
			if len(cur) > 0 {
				all = append(all, cur)
			}
			cur, key = map[string]string{}, ""
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if key != "" {
				cur[key] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			key = strings.ToLower(strings.TrimSpace(name))
			cur[key] = strings.TrimSpace(value)
		}
	}
	return all
}

// usable accepts what can stand in a sources file of ours without changing its
// meaning.
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

// Public gives an address without anyone's credentials, "" for what is none.
func Public(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Scrub takes credentials out of the addresses in a text.
func Scrub(s string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, "://")
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i+3])
		s = s[i+3:]
		end := strings.IndexAny(s, "/ \t\n'\"")
		if end < 0 {
			end = len(s)
		}
		if at := strings.LastIndexByte(s[:end], '@'); at >= 0 {
			s = s[at+1:]
		}
	}
}
