package debian

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/errs"
)

// apt is a private apt root: its own sources, lists and state below dir, with
// the host's settings for proxies, certificates and credentials. The host's
// apt is neither read for its packages nor changed.
type apt struct {
	dir  string
	conf string
}

// newApt lays the private root out below dir, which exists and is empty.
func newApt(dir, keyring, arch, suite, component string, uris []string) (*apt, error) {
	a := &apt{dir: dir, conf: filepath.Join(dir, "apt.conf")}
	for _, d := range []string{"etc/sources.list.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial", "download"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	if strings.ContainsAny(dir+keyring, "\"\n;") || strings.ContainsAny(keyring, " []") {
		return nil, fmt.Errorf("apt cannot work in %q with keyring %q: unusable characters", dir, keyring)
	}
	var list strings.Builder
	for _, u := range uris {
		fmt.Fprintf(&list, "deb [arch=%s signed-by=%s] %s %s %s\n", arch, keyring, u, suite, component)
	}
	// Read after the host's configuration, so that this decides. Hooks of
	// the host have no business here.
	conf := fmt.Sprintf(`#clear APT::Update;
#clear DPkg;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
};
Dir::Etc::sourcelist "%[1]s/etc/sources.list";
Dir::Etc::sourceparts "%[1]s/etc/sources.list.d";
Dir::Etc::preferences "%[1]s/etc/preferences";
Dir::Etc::preferencesparts "%[1]s/etc/preferences.d";
Dir::State "%[1]s/state";
Dir::State::lists "%[1]s/state/lists";
Dir::State::status "%[1]s/state/status";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[1]s/cache/archives";
Dir::Log "/dev/null";
#clear APT::Architectures;
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::GzipIndexes "false";
`, dir, arch)
	for name, data := range map[string]string{"etc/sources.list": list.String(), "apt.conf": conf, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// update fetches and verifies the package lists.
func (a *apt) update(ctx context.Context) error {
	return a.run(ctx, nil, a.dir, "update", "--error-on=any")
}

// packages calls each for every stanza of the fetched lists until it fails.
func (a *apt) packages(each func(pkg) error) error {
	files, err := filepath.Glob(filepath.Join(a.dir, "state/lists/*_Packages"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("apt fetched no package list")
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = readPackages(f, each)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// download fetches one package, verified against the lists, and gives its
// path. progress takes bytes of p.Size.
func (a *apt) download(ctx context.Context, p pkg, progress func(int64)) (string, error) {
	dir := filepath.Join(a.dir, "download")
	if err := a.run(ctx, func(percent float64) { progress(int64(percent / 100 * float64(p.size))) }, dir,
		"download", p.name+"="+p.version); err != nil {
		return "", err
	}
	m, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(m) != 1 {
		return "", fmt.Errorf("apt-get download left %d files", len(m))
	}
	return m[0], nil
}

// run runs apt-get; percent, where not nil, takes the progress of a download.
func (a *apt) run(ctx context.Context, percent func(float64), dir string, args ...string) error {
	argv := append([]string{"-c", a.conf, "-q"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", argv...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// apt's download methods are processes of their own: end them too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out := &tail{max: 8 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	done := make(chan struct{})
	if percent == nil {
		close(done)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		cmd.ExtraFiles = []*os.File{w}
		cmd.Args = append([]string{"apt-get", "-o", "APT::Status-Fd=3"}, argv...)
		go func() {
			defer close(done)
			status(r, percent)
		}()
		defer w.Close()
	}
	err := cmd.Run()
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	<-done
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errs.New(errs.Unsupported, "kernel_needs_apt", "cannot fetch a Debian kernel: this host has no apt-get").
			WithHint("install apt (package apt on most distributions), then try again; see: banger doctor")
	}
	return fmt.Errorf("apt-get %s: %s", args[0], reason(out.String(), err))
}

// status reads apt's "dlstatus:1:33.4:Retrieving …" lines until EOF.
func status(r io.Reader, percent func(float64)) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), ":", 4)
		if len(f) < 3 || f[0] != "dlstatus" {
			continue
		}
		if p, err := strconv.ParseFloat(f[2], 64); err == nil && p >= 0 && p <= 100 {
			percent(p)
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

var userinfo = regexp.MustCompile(`://[^/@\s]*@`)

// reason gives apt's first error line, without credentials.
func reason(out string, err error) string {
	msg := err.Error()
	for line := range strings.SplitSeq(out, "\n") {
		if rest, ok := strings.CutPrefix(line, "E: "); ok {
			msg = rest
			break
		}
	}
	msg = userinfo.ReplaceAllString(msg, "://")
	return strings.Join(strings.FieldsFunc(msg, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
}

// tail keeps the last bytes written to it.
type tail struct {
	max int
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if n > t.max {
		p = p[n-t.max:]
	}
	if over := t.buf.Len() + len(p) - t.max; over > 0 {
		t.buf.Next(over)
	}
	t.buf.Write(p)
	return n, nil
}

func (t *tail) String() string { return t.buf.String() }

// pkg is one stanza of a Packages file.
type pkg struct {
	name, version, sha256 string
	size                  int64
}

// readPackages reads a Packages file.
func readPackages(r io.Reader, each func(pkg) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), 4<<20)
	var p pkg
	flush := func() error {
		q := p
		p = pkg{}
		if q.name == "" {
			return nil
		}
		return each(q)
	}
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			if err := flush(); err != nil {
				return err
			}
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue
		}
		switch key {
		case "Package":
			p.name = value
		case "Version":
			p.version = value
		case "SHA256":
			p.sha256 = value
		case "Size":
			p.size, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("reading apt's package list: %w", err)
	}
	return flush()
}
