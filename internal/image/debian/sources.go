package debian

import (
	"bufio"
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// Mirror is where Debian's packages come from on this host.
type Mirror struct {
	Main     string // URL of the archive; may carry credentials
	Security string // URL of the security archive, "" where none is known
	Keyring  string // file with Debian's archive keys
	Auth     []string
}

// EnvMirror names an archive for hosts that have no Debian sources of their
// own: one URL, or two with the security archive second, parted by a space.
const EnvMirror = "BANGER_DEBIAN_MIRROR"

// FindMirror reads the host's apt sources below root ("/" but in tests), which
// the environment may override. Codes: debian_mirror_unknown,
// debian_keyring_missing.
func FindMirror(root string, getenv func(string) string) (Mirror, error) {
	var m Mirror
	if f := strings.Fields(getenv(EnvMirror)); len(f) > 0 {
		m.Main = f[0]
		if len(f) > 1 {
			m.Security = f[1]
		}
		for _, u := range f {
			if !usable(u) {
				return Mirror{}, errs.New(errs.Invalid, "debian_mirror_unknown", "%s holds %q, which is not an http or https URL", EnvMirror, Scrub(u))
			}
		}
	} else {
		for _, s := range hostSources(root) {
			s.offer(root, &m)
		}
	}
	if m.Main == "" {
		return Mirror{}, errs.New(errs.Unsupported, "debian_mirror_unknown", "cannot tell where to get Debian packages: this host's apt has no Debian sources").
			WithHint("name an archive: export %s='http://MIRROR/debian http://MIRROR/debian-security'; banger daemon stop", EnvMirror)
	}
	for _, k := range []string{"debian-archive-keyring.gpg", "debian-archive-keyring.pgp"} {
		if p := filepath.Join(root, "usr/share/keyrings", k); isFile(p) {
			m.Keyring = p
			break
		}
	}
	if m.Keyring == "" {
		return Mirror{}, errs.New(errs.Unsupported, "debian_keyring_missing", "cannot check Debian packages: Debian's archive keys are not installed").
			WithHint("sudo apt-get install debian-archive-keyring")
	}
	m.Auth = authFiles(root)
	return m, nil
}

// lines renders apt sources for a recipe; public leaves credentials out.
func (m Mirror) lines(r *Recipe, keyring string, public bool) string {
	var b strings.Builder
	add := func(uri string, suites []string) {
		if uri == "" {
			return
		}
		if public {
			uri = withoutUser(uri)
		}
		for _, s := range suites {
			fmt.Fprintf(&b, "deb [signed-by=%s] %s %s %s\n", keyring, uri, s, strings.Join(r.Components, " "))
		}
	}
	add(m.Main, append([]string{r.Suite}, r.Updates...))
	add(m.Security, r.Security)
	for _, e := range r.Extra {
		add(m.Main, e.Suites)
		add(m.Security, e.Security)
	}
	return b.String()
}

// pins renders apt preferences that keep an extra suite to its packages.
func (r *Recipe) pins() string {
	var b strings.Builder
	for _, e := range r.Extra {
		fmt.Fprintf(&b, "Package: *\nPin: release n=%s\nPin-Priority: -10\n\nPackage: %s\nPin: release n=%s\nPin-Priority: 990\n\n", e.Pin, strings.Join(e.Packages, " "), e.Pin)
	}
	return b.String()
}

// source is one line or stanza of apt's sources.
type source struct {
	file       string
	uris       []string
	suites     []string
	components []string
	signedBy   string
}

// maxSources bounds what is read of one file of sources.
const maxSources = 1 << 20

// hostSources reads all of apt's sources, the distribution's own files first.
func hostSources(root string) []source {
	dir := filepath.Join(root, "etc/apt")
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.sources", "*.list"} {
		more, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern)) // the patterns are sound
		sort.Strings(more)
		files = append(files, more...)
	}
	var all []source
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || len(b) > maxSources {
			continue // apt itself goes on without a file it cannot read
		}
		parse := parseOneLine
		if strings.HasSuffix(f, ".sources") {
			parse = parseDeb822
		}
		for _, s := range parse(b) {
			s.file = filepath.Base(f)
			all = append(all, s)
		}
	}
	return all
}

// parseOneLine reads the "deb [options] uri suite components…" form.
func parseOneLine(b []byte) []source {
	var all []source
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxSources)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			opts, after, found := strings.Cut(rest[1:], "]")
			if !found {
				continue
			}
			for _, o := range strings.Fields(opts) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		s.uris, s.suites, s.components = f[:1], f[1:2], f[2:]
		all = append(all, s)
	}
	return all
}

// parseDeb822 reads the form with fields and stanzas.
func parseDeb822(b []byte) []source {
	var all []source
	for _, stanza := range stanzas(b) {
		if v := strings.ToLower(strings.TrimSpace(stanza["enabled"])); v == "no" || v == "false" || v == "0" || v == "off" {
			continue
		}
		if !slices.Contains(strings.Fields(stanza["types"]), "deb") {
			continue
		}
		all = append(all, source{
			uris: strings.Fields(stanza["uris"]), suites: strings.Fields(stanza["suites"]),
			components: strings.Fields(stanza["components"]), signedBy: strings.TrimSpace(stanza["signed-by"]),
		})
	}
	return all
}

// stanzas splits control data into its paragraphs, field names in lower case.
func stanzas(b []byte) []map[string]string {
	var all []map[string]string
	cur, key := map[string]string{}, ""
	flush := func() {
		if len(cur) > 0 {
			all = append(all, cur)
		}
		cur, key = map[string]string{}, ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		line = strings.TrimRight(line, "\r \t")
		switch {
		case line == "":
			flush()
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
	flush()
	return all
}

var debianSuites = strings.Fields("buster bullseye bookworm trixie forky duke sid unstable testing stable oldstable oldoldstable")

// offer takes the source's address where it is Debian's own archive and none
// is known yet.
func (s source) offer(root string, m *Mirror) {
	if len(s.uris) == 0 || !slices.Contains(s.components, "main") {
		return
	}
	uri := resolveMirror(root, s.uris[0])
	if !usable(uri) || !s.debian(uri) {
		return
	}
	for _, suite := range s.suites {
		base, rest, _ := strings.Cut(strings.ReplaceAll(suite, "/", "-"), "-")
		if !slices.Contains(debianSuites, base) {
			continue
		}
		security := rest == "security" || (rest == "updates" && strings.Contains(suite, "/"))
		switch {
		case security && m.Security == "":
			m.Security = uri
		case rest == "" && m.Main == "":
			m.Main = uri
		}
	}
}

// debian says whether a source is the distribution's: others use Debian's
// suite names for archives of their own.
func (s source) debian(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && (strings.Contains(s.signedBy, "debian-archive") ||
		(s.signedBy == "" && (s.file == "sources.list" || s.file == "debian.sources" || strings.Contains(u.Path, "debian"))) ||
		(s.file == "debian.sources" && s.signedBy != ""))
}

// resolveMirror follows apt's "mirror+file:" to the first address listed.
func resolveMirror(root, uri string) string {
	p, ok := strings.CutPrefix(uri, "mirror+file:")
	if !ok {
		return uri
	}
	b, err := os.ReadFile(filepath.Join(root, strings.TrimPrefix(p, "//")))
	if err != nil || len(b) > maxSources {
		return ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			return f[0]
		}
	}
	return ""
}

func usable(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && !strings.ContainsAny(uri, " \t\n[]")
}

// withoutUser takes a URL's credentials out.
func withoutUser(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Scrub takes credentials out of any URLs in a text.
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

// authFiles lists apt's files of credentials that this user may read.
func authFiles(root string) []string {
	files, _ := filepath.Glob(filepath.Join(root, "etc/apt/auth.conf.d/*.conf")) // the pattern is sound
	return slices.DeleteFunc(append([]string{filepath.Join(root, "etc/apt/auth.conf")}, files...), func(p string) bool {
		f, err := os.Open(p)
		if err == nil {
			err = f.Close()
		}
		return err != nil
	})
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}
