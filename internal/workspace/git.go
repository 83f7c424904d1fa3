package workspace

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// maxGitOutput bounds what a question to git may answer, in bytes; lists of
// files are streamed and not bound by it.
const maxGitOutput = 1 << 20

// git asks the host's git about a repository that may be hostile: no hook, no
// file system monitor and no pager of its config runs, nothing is locked.
type git struct{ dir string }

func (g git) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{
		"-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
		"-c", "core.untrackedCache=false", "-c", "protocol.ext.allow=never",
		"--no-pager", "-C", g.dir,
	}, args...)
	cmd := exec.CommandContext(ctx, "git", argv...)
	cmd.Env = append(cleanEnv(os.Environ()), "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	return cmd
}

// cleanEnv drops what would make git look at another repository.
func cleanEnv(env []string) []string {
	out := env[:0:0]
	for _, kv := range env {
		if strings.HasPrefix(kv, "GIT_") {
			continue
		}
		out = append(out, kv)
	}
	return out
}

// ask runs git and gives its output without the final newline.
func (g git) ask(ctx context.Context, args ...string) (string, error) {
	cmd := g.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &limitedBuffer{b: &stderr, left: 4096}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", errs.New(errs.Unsupported, "git_missing", "git is not installed on this host").
				WithHint("install it: apt-get install git")
		}
		return "", err
	}
	data, rerr := io.ReadAll(io.LimitReader(out, maxGitOutput+1))
	if len(data) > maxGitOutput {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return "", fmt.Errorf("git %s: more than %d bytes of output", args[0], maxGitOutput)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, firstLine(stderr.String()))
	}
	return strings.TrimSuffix(string(data), "\n"), rerr
}

// each calls f for every NUL-terminated record git prints.
func (g git) each(ctx context.Context, f func(string) error, args ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := g.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &limitedBuffer{b: &stderr, left: 4096}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(make([]byte, 0, 64<<10), 64<<10)
	sc.Split(splitNUL)
	var ferr error
	for sc.Scan() {
		if ferr = f(sc.Text()); ferr != nil {
			cancel()
			break
		}
	}
	if ferr == nil {
		ferr = sc.Err()
	}
	werr := cmd.Wait()
	if ferr != nil {
		return ferr
	}
	if werr != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], werr, firstLine(stderr.String()))
	}
	return nil
}

func splitNUL(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errors.New("git's list ends in the middle of a name")
	}
	return 0, nil, nil
}

type limitedBuffer struct {
	b    *bytes.Buffer
	left int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.b.Write(p[:n])
	l.left -= n
	return len(p), nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// guestConfig writes the config that the guest's copy of the repository gets:
// made anew from the few settings that matter, never copied, so that nothing
// of the host's (credentials, hooks, filters, paths) goes along.
func (g git) guestConfig(ctx context.Context) (string, error) {
	var b strings.Builder
	format, _ := g.ask(ctx, "config", "--local", "core.repositoryformatversion")
	if format != "1" {
		format = "0"
	}
	// checkStat=minimal: times and sizes are kept, inodes and ctimes cannot
	// be, so the copied index stays valid without reading every file again.
	fmt.Fprintf(&b, "[core]\n\trepositoryformatversion = %s\n\tbare = false\n\tlogallrefupdates = true\n\tcheckStat = minimal\n\ttrustctime = false\n", format)
	for _, key := range []string{"core.filemode", "core.symlinks", "core.ignorecase", "core.autocrlf", "core.eol", "core.sparsecheckout", "core.sparsecheckoutcone"} {
		if v, err := g.ask(ctx, "config", "--type=bool-or-int", key); err == nil && v != "" {
			fmt.Fprintf(&b, "\t%s = %s\n", key[len("core."):], quoteConfig(v))
		} else if v, err := g.ask(ctx, "config", key); err == nil && v != "" {
			fmt.Fprintf(&b, "\t%s = %s\n", key[len("core."):], quoteConfig(v))
		}
	}
	if format == "1" {
		if v, err := g.ask(ctx, "config", "--local", "extensions.objectformat"); err == nil && v != "" {
			fmt.Fprintf(&b, "[extensions]\n\tobjectformat = %s\n", quoteConfig(v))
		}
	}
	for _, key := range []string{"name", "email"} {
		if v, err := g.ask(ctx, "config", "user."+key); err == nil && v != "" {
			fmt.Fprintf(&b, "[user]\n\t%s = %s\n", key, quoteConfig(v))
		}
	}
	err := g.each(ctx, func(rec string) error {
		key, v, _ := strings.Cut(rec, "\n")
		dot := strings.IndexByte(key, '.')
		last := strings.LastIndexByte(key, '.')
		if dot < 0 || last <= dot {
			return nil
		}
		section, name, leaf := key[:dot], key[dot+1:last], key[last+1:]
		switch {
		case section == "remote" && leaf == "url":
			v = withoutCredentials(v)
		case section == "remote" && leaf == "fetch":
		case section == "branch" && (leaf == "remote" || leaf == "merge" || leaf == "rebase"):
		default:
			return nil
		}
		fmt.Fprintf(&b, "[%s %s]\n\t%s = %s\n", section, quoteConfig(name), leaf, quoteConfig(v))
		return nil
	}, "config", "--local", "--null", "--list")
	return b.String(), err
}

// quoteConfig writes a value so that git reads it back as it is.
func quoteConfig(v string) string {
	r := strings.NewReplacer("\\", `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\b", `\b`)
	return `"` + strings.ReplaceAll(r.Replace(v), "\x00", "") + `"`
}

// withoutCredentials takes a user's password or token out of a remote's URL.
func withoutCredentials(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User == nil || u.Host == "" {
		return raw
	}
	if u.Scheme == "ssh" {
		u.User = url.User(u.User.Username())
	} else {
		u.User = nil
	}
	return u.String()
}

// gitDirs finds the directory of this working tree's own git files and the one
// it shares with other working trees.
func (g git) gitDirs(ctx context.Context) (own, common string, err error) {
	if own, err = g.ask(ctx, "rev-parse", "--absolute-git-dir"); err != nil {
		return "", "", err
	}
	if common, err = g.ask(ctx, "rev-parse", "--git-common-dir"); err != nil {
		return "", "", err
	}
	if !filepath.IsAbs(common) {
		common = filepath.Join(g.dir, common)
	}
	return own, filepath.Clean(common), nil
}
