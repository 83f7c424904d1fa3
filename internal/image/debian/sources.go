package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/banger-dev/banger/internal/aptsource"
	"github.com/banger-dev/banger/internal/errs"
)

// Mirror is where Debian's packages come from on this host.
type Mirror struct {
	Main     string   // URL of the archive; may carry credentials
	Security string   // URL of the security archive, "" where none is known
	Keyring  string   // file with Debian's archive keys
	Auth     []string // apt's files of credentials that this user can read
}

// FindMirror reads the host's apt sources below root ("/" but in tests), which
// the environment may override. Codes: debian_mirror_unknown,
// debian_keyring_missing.
func FindMirror(root string, getenv func(string) string) (Mirror, error) {
	found, err := aptsource.Find(os.DirFS(root), getenv)
	if err != nil {
		return Mirror{}, errs.New(errs.Invalid, "debian_mirror_unknown", "cannot tell where to get Debian packages").Because(err)
	}
	var m Mirror
	if len(found.Main) > 0 {
		m.Main = found.Main[0]
	}
	if len(found.Security) > 0 {
		m.Security = found.Security[0]
	}
	if m.Main == "" {
		return Mirror{}, errs.New(errs.Unsupported, "debian_mirror_unknown", "cannot tell where to get Debian packages: this host's apt has no Debian sources").
			WithHint("name an archive: export %s='http://MIRROR/debian http://MIRROR/debian-security'; banger daemon stop", aptsource.Env)
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
			uri = aptsource.Public(uri)
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
