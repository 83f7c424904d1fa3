package apiclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/banger-dev/banger/internal/errs"
)

// Starting is a daemon that was started and may not answer yet.
type Starting struct {
	// Ended gets how the process ended ("exit status 1"), or "" when it
	// ended well because another daemon is there.
	Ended <-chan string
	log   string
	from  int64
}

// LastLine is the last line that was logged since the start, or "".
func (s *Starting) LastLine() string {
	f, err := os.Open(s.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	if _, err := f.Seek(max(s.from, size-8192), io.SeekStart); err != nil {
		return ""
	}
	last := ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if l := strings.TrimSpace(sc.Text()); l != "" {
			last = l
		}
	}
	return last
}

// FindDaemon looks for bangerd beside the running program, then in
// prefix/bin, then on PATH.
func FindDaemon(self, prefix string) (string, error) {
	var tried []string
	if self != "" {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			tried = append(tried, filepath.Join(filepath.Dir(real), "bangerd"))
		}
	}
	tried = append(tried, filepath.Join(prefix, "bin", "bangerd"))
	for _, p := range tried {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	if p, err := exec.LookPath("bangerd"); err == nil {
		return filepath.Abs(p)
	}
	return "", errs.New(errs.Unsupported, "daemon_not_installed", "bangerd is not installed: looked in %s and on PATH", strings.Join(tried, ", ")).
		WithHint("make install PREFIX=%s", prefix)
}

// StartDaemon returns an Options.Start that runs the program detached: in a
// session of its own, away from this terminal and directory, with its output
// in the log.
func StartDaemon(find func() (string, error), log string) func(context.Context) (*Starting, error) {
	return func(context.Context) (*Starting, error) {
		path, err := find()
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
			return nil, errs.Wrap(err, errs.Denied, "state_dir", "cannot make bangerd's directory")
		}
		out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, errs.Wrap(err, errs.Denied, "daemon_log", "cannot write bangerd's log")
		}
		defer out.Close()
		at, err := out.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, errs.Wrap(err, errs.Internal, "daemon_log", "cannot write bangerd's log")
		}
		// not CommandContext: the daemon outlives whoever started it
		cmd := exec.Command(path)
		cmd.Dir = "/"
		cmd.Env = daemonEnv(os.Environ())
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return nil, errs.Wrap(err, errs.Unavailable, "daemon_start_failed", "cannot start %s", path)
		}
		ended := make(chan string, 1)
		// ends with the daemon, or with this process
		go func() {
			err := cmd.Wait()
			var xe *exec.ExitError
			switch {
			case errors.As(err, &xe):
				ended <- xe.String()
			case err != nil:
				ended <- err.Error()
			default:
				ended <- ""
			}
		}()
		return &Starting{Ended: ended, log: log, from: at}, nil
	}
}

// daemonEnv is what a daemon needs of its starter's environment: it lives long
// and its environment can be read, so tokens of the shell that happened to
// start it stay out.
func daemonEnv(environ []string) []string {
	var out []string
	for _, kv := range environ {
		k, _, _ := strings.Cut(kv, "=")
		switch k {
		case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "TZ", "DOCKER_CONFIG", "DBUS_SESSION_BUS_ADDRESS",
			"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
			"SSL_CERT_FILE", "SSL_CERT_DIR", "GOCOVERDIR", "GORACE", "GOTRACEBACK":
			out = append(out, kv)
			continue
		}
		for _, p := range []string{"LC_", "XDG_", "BANGER_", "npm_config_", "NPM_CONFIG_"} {
			if strings.HasPrefix(k, p) {
				out = append(out, kv)
				break
			}
		}
	}
	return out
}
