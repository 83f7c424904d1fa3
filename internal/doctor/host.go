package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"
)

// Host is this machine as the checks see it; tests put another one in.
type Host struct {
	// Root is the file system from / on, /proc and /sys included.
	Root fs.FS
	// Run runs a program and gives what it wrote to both outputs.
	Run func(ctx context.Context, name string, args ...string) (string, error)
	// Free gives the bytes that can still be written where path lies.
	Free func(path string) (int64, error)
	UID  int
	User string
	Path string // PATH
}

// ThisHost is the machine that banger runs on.
func ThisHost() Host {
	return Host{Root: os.DirFS("/"), Run: runProgram, Free: freeBytes, UID: os.Geteuid(), User: os.Getenv("USER"), Path: os.Getenv("PATH")}
}

func runProgram(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// freeBytes looks at the nearest directory that exists.
func freeBytes(p string) (int64, error) {
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(p, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, syscall.ENOENT) || p == "/" {
			return 0, fmt.Errorf("statfs %s: %w", p, err)
		}
		p = path.Dir(p)
	}
}

// rel makes an absolute path one of Root's.
func rel(p string) string {
	if p = strings.TrimPrefix(path.Clean(p), "/"); p == "" {
		return "."
	}
	return p
}

// read gives a file's trimmed content, "" when it cannot be read.
func (h Host) read(p string) string {
	b, err := fs.ReadFile(h.Root, rel(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h Host) exists(p string) bool {
	_, err := fs.Stat(h.Root, rel(p))
	return err == nil
}

// find gives the path of a program: name itself where it is a path, otherwise
// what PATH or the system's directories have; "" when there is none.
func (h Host) find(name string) string {
	if strings.Contains(name, "/") {
		if h.executable(name) {
			return name
		}
		return ""
	}
	dirs := append(strings.Split(h.Path, ":"), "/usr/local/sbin", "/usr/sbin", "/sbin")
	for _, d := range dirs {
		if p := path.Join(d, name); path.IsAbs(p) && h.executable(p) {
			return p
		}
	}
	return ""
}

func (h Host) executable(p string) bool {
	st, err := fs.Stat(h.Root, rel(p))
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// sudo makes a command one that this user can give.
func (h Host) sudo(cmd string) string {
	if h.UID == 0 {
		return cmd
	}
	return "sudo " + cmd
}

// manager is a distribution's package manager.
type manager struct{ ids, install string }

var managers = map[string]manager{
	"apt":    {"debian ubuntu", "apt-get install "},
	"dnf":    {"fedora rhel centos", "dnf install "},
	"pacman": {"arch", "pacman -S "},
	"zypper": {"suse opensuse", "zypper install "},
	"apk":    {"alpine", "apk add "},
}

// packages has, for each thing banger uses, the package that brings it. A
// manager that is not named has none that we know of.
var packages = map[string]map[string]string{
	"qemu":                   {"apt": "qemu-system-x86", "dnf": "qemu-system-x86-core", "pacman": "qemu-system-x86", "zypper": "qemu-x86", "apk": "qemu-system-x86_64"},
	"mmdebstrap":             {"apt": "mmdebstrap", "dnf": "mmdebstrap"},
	"apt":                    {"apt": "apt", "dnf": "apt"},
	"uidmap":                 {"apt": "uidmap", "dnf": "shadow-utils", "pacman": "shadow", "zypper": "shadow", "apk": "shadow-subids"},
	"debian-archive-keyring": {"apt": "debian-archive-keyring", "dnf": "debian-keyring", "pacman": "debian-archive-keyring", "apk": "debian-archive-keyring"},
	"e2fsprogs":              {"apt": "e2fsprogs", "dnf": "e2fsprogs", "pacman": "e2fsprogs", "zypper": "e2fsprogs", "apk": "e2fsprogs"},
	"ssh":                    {"apt": "openssh-client", "dnf": "openssh-clients", "pacman": "openssh", "zypper": "openssh-clients", "apk": "openssh-client-default"},
	"git":                    {"apt": "git", "dnf": "git", "pacman": "git", "zypper": "git", "apk": "git"},
}

// install gives the command that installs what brings a thing.
func (h Host) install(thing string) []string {
	m := h.manager()
	pkg := packages[thing][m]
	if pkg == "" {
		return []string{"install " + thing + " (no package of this distribution is known here)"}
	}
	return []string{h.sudo(managers[m].install + pkg)}
}

// manager finds the package manager by os-release's ID and ID_LIKE.
func (h Host) manager() string {
	ids := h.osRelease()
	for _, id := range strings.Fields(ids["ID"] + " " + ids["ID_LIKE"]) {
		for name, m := range managers {
			for known := range strings.FieldsSeq(m.ids) {
				if id == known || (known == "opensuse" && strings.HasPrefix(id, "opensuse")) {
					return name
				}
			}
		}
	}
	return ""
}

func (h Host) osRelease() map[string]string {
	text := h.read("/etc/os-release")
	if text == "" {
		text = h.read("/usr/lib/os-release")
	}
	out := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			out[k] = strings.Trim(v, `"'`)
		}
	}
	return out
}

// meminfo gives a field of /proc/meminfo in bytes, 0 when it is not there.
func (h Host) meminfo(field string) int64 {
	b, err := fs.ReadFile(h.Root, "proc/meminfo")
	if err != nil {
		return 0
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		var kb int64
		if rest, ok := strings.CutPrefix(sc.Text(), field+":"); ok {
			if _, err := fmt.Sscanf(rest, "%d kB", &kb); err == nil {
				return kb << 10
			}
		}
	}
	return 0
}
