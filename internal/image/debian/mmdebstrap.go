package debian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
)

// stopGrace is how long mmdebstrap may take to clean up after itself.
const stopGrace = 10 * time.Second

// bootstrap is one run of mmdebstrap.
type bootstrap struct {
	bin     string
	recipe  *Recipe
	mirror  Mirror
	aptOpts []string
	work    string // directory of ours for small files
	build   string // directory for the tree under construction
	mode    string // "root" or "unshare"
	prog    *progress
}

// prepare finds mmdebstrap and a place to build. Codes: mmdebstrap_missing,
// unshare_missing, build_space.
func (b *bootstrap) prepare() error {
	if b.bin == "" {
		b.bin = "mmdebstrap"
	}
	bin, err := exec.LookPath(b.bin)
	if err != nil {
		return errs.New(errs.Unsupported, "mmdebstrap_missing", "cannot make image %q: mmdebstrap is not installed", b.recipe.Name).
			WithHint("sudo apt-get install mmdebstrap")
	}
	b.bin, b.mode = bin, "root"
	parent := b.work
	if os.Geteuid() != 0 {
		// the user's directories are closed to the ids that it builds with
		b.mode, parent = "unshare", "/var/tmp"
		if _, err := exec.LookPath("newuidmap"); err != nil {
			return errs.New(errs.Unsupported, "unshare_missing", "cannot make image %q without root: newuidmap is not installed", b.recipe.Name).
				WithHint("sudo apt-get install uidmap")
		}
	}
	if free, err := fsx.FreeSpace(parent); err == nil && free < NeedBuild {
		return errs.New(errs.Exhausted, "disk_full", "cannot make image %q: %d MB free in %s, %d MB needed", b.recipe.Name, free>>20, parent, int64(NeedBuild)>>20).
			WithHint("free space in %s (df -h %s)", parent, parent)
	}
	if b.build, err = os.MkdirTemp(parent, "banger-build-"); err != nil {
		return err
	}
	if b.mode == "unshare" {
		return os.Chmod(b.build, 0o777|os.ModeSticky)
	}
	return os.Chmod(b.build, 0o755)
}

// clean removes what a run leaves when it is killed.
func (b *bootstrap) clean(ctx context.Context) error {
	if b.build == "" {
		return nil
	}
	err := os.RemoveAll(b.build)
	if err != nil && b.mode == "unshare" {
		// files of ids that only the same user namespace may remove
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		left, _ := filepath.Glob(filepath.Join(b.build, "*"))
		herr := exec.CommandContext(ctx, b.bin, append([]string{"--unshare-helper", "rm", "-rf", "--"}, left...)...).Run()
		err = errors.Join(herr, os.RemoveAll(b.build))
		if err == nil {
			return nil
		}
	}
	return err
}

// run builds the tree and writes it to out as a tar stream. It ends only when
// every process it started is gone.
func (b *bootstrap) run(ctx context.Context, out *os.File) error {
	argv, err := b.argv()
	if err != nil {
		return err
	}
	// the kernel ties a parent-death signal to the thread that forked
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, b.bin, argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	cmd.Dir = "/"
	cmd.Env = b.env()
	cmd.Stdin = strings.NewReader(b.mirror.lines(b.recipe, b.mirror.Keyring, false))
	cmd.Stdout = out
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stderr = pw
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.watch(pr)
	}()
	err = cmd.Run()
	if cmd.Process != nil {
		// whoever outlived the leader of the group; mostly there is no one
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cerr := pw.Close()
	<-read
	err = errors.Join(err, cerr, pr.Close())
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("make image %s: %w", b.recipe.Name, context.Cause(ctx))
	}
	return b.explain(err)
}

// watch reads mmdebstrap's own words, bounded however long its lines are.
func (b *bootstrap) watch(r io.Reader) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadSlice('\n')
		for part := range strings.SplitSeq(string(line), "\r") {
			b.prog.line(part)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// explain makes one line of a failure.
func (b *bootstrap) explain(err error) error {
	why := b.prog.failure()
	all := strings.Join(b.prog.tail, "\n")
	switch {
	case strings.Contains(all, "No space left on device"):
		return errs.New(errs.Exhausted, "disk_full", "cannot make image %q: no space left in %s", b.recipe.Name, filepath.Dir(b.build)).
			WithHint("free space there (df -h %s)", filepath.Dir(b.build))
	case strings.Contains(all, "Could not resolve") || strings.Contains(all, "Could not connect") || strings.Contains(all, "Failed to fetch") || strings.Contains(all, "Unable to connect"):
		return errs.New(errs.Unavailable, "debian_mirror", "cannot make image %q: the Debian mirror does not answer: %s", b.recipe.Name, why).
			WithHint("check the network and this host's apt sources (sudo apt-get update)").Because(err)
	case strings.Contains(all, "/etc/subuid") || strings.Contains(all, "newuidmap"):
		return errs.New(errs.Unsupported, "unshare_missing", "cannot make image %q without root: this user has no subordinate ids: %s", b.recipe.Name, why).
			WithHint("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER").Because(err)
	case strings.Contains(all, "unprivileged_userns_clone") || strings.Contains(all, "unshare"):
		return errs.New(errs.Unsupported, "unshare_missing", "cannot make image %q without root: this host forbids user namespaces: %s", b.recipe.Name, why).
			WithHint("sudo sysctl -w kernel.unprivileged_userns_clone=1").Because(err)
	}
	return errs.New(errs.Unavailable, "mmdebstrap_failed", "cannot make image %q: %s", b.recipe.Name, why).Because(err)
}

// buildConf is apt's configuration while the image is made.
const buildConf = "00banger-build"

// argv is mmdebstrap's command line. Addresses of mirrors and proxies are not
// on it, since they may carry credentials: they go in by standard input and in
// files that only this user can read.
func (b *bootstrap) argv() ([]string, error) {
	r := b.recipe
	argv := []string{"--mode=" + b.mode, "--variant=apt", "--format=tar", "--verbose",
		"--components=" + strings.Join(r.Components, ","), "--include=" + strings.Join(r.allPackages(), ","), "--dpkgopt=force-unsafe-io"}
	for _, p := range r.Exclude.Paths {
		argv = append(argv, "--dpkgopt=path-exclude="+p)
	}
	for _, p := range r.Exclude.Keep {
		argv = append(argv, "--dpkgopt=path-include="+p)
	}
	copyIn := func(name, text, dir string) error {
		p := filepath.Join(b.work, name)
		argv = append(argv, "--setup-hook=copy-in "+shellQuote(p)+" "+dir)
		return os.WriteFile(p, []byte(text), 0o600)
	}
	apt := append([]string{`APT::Install-Recommends "false"`, `Acquire::Languages "none"`, `Acquire::Retries "3"`}, b.aptOpts...)
	if err := copyIn(buildConf, strings.Join(apt, ";\n")+";\n", "/etc/apt/apt.conf.d"); err != nil {
		return nil, err
	}
	if len(r.Extra) > 0 {
		if err := copyIn("pins", r.pins(), "/etc/apt/preferences.d"); err != nil {
			return nil, err
		}
	}
	for _, f := range b.mirror.Auth {
		dir := "/etc/apt"
		if filepath.Base(filepath.Dir(f)) == "auth.conf.d" {
			dir = "/etc/apt/auth.conf.d"
		}
		argv = append(argv, "--setup-hook=mkdir -p \"$1\""+dir, "--setup-hook=copy-in "+shellQuote(f)+" "+dir)
	}
	return append(argv, r.Suite, "-", "-"), nil
}

// env is all that mmdebstrap sees of ours.
func (b *bootstrap) env() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"TMPDIR=" + b.build, "SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.recipe.Epoch, 10)}
	for _, k := range []string{"HOME", "USER", "LOGNAME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// allPackages lists every package asked for, each once.
func (r *Recipe) allPackages() []string {
	seen := map[string]bool{}
	var all []string
	lists := [][]string{r.Packages}
	for _, e := range r.Extra {
		lists = append(lists, e.Packages)
	}
	for _, l := range lists {
		for _, p := range l {
			if !seen[p] {
				seen[p] = true
				all = append(all, p)
			}
		}
	}
	return all
}

// shellQuote makes one word for mmdebstrap's hooks, which a shell splits.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// hostAptOptions carries over how this host's apt reaches the network, and
// nothing else of its settings.
func hostAptOptions(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%f %v%n").Output()
	if err != nil {
		return nil // no apt here: nothing to carry over
	}
	return parseAptOptions(string(out))
}

func parseAptOptions(dump string) []string {
	var opts []string
	for line := range strings.SplitSeq(dump, "\n") {
		key, value, ok := strings.Cut(line, " ")
		if !ok || value == "" || strings.ContainsAny(value, "\"\n\\") {
			continue
		}
		switch key {
		case "Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::https::CaInfo", "Acquire::Check-Valid-Until", "Acquire::Check-Date":
			opts = append(opts, key+` "`+value+`"`)
		}
	}
	return opts
}
