package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/inroot"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// maxFile bounds the files of the image that are read to be changed.
const maxFile = 1 << 20

// files writes an identity's files.
type files struct{ root, home *inroot.Root }

// put writes a file of the root unless it is there as it should be: to read is
// cheaper than to replace, and a clone finds much as its template left it.
func (f files) put(name string, text string, mode uint32) error {
	if f.root.Regular(name, mode) {
		if old, err := f.root.ReadFile(name, maxFile); err == nil && string(old) == text {
			return nil
		}
	}
	return f.root.WriteFile(name, []byte(text), mode)
}

func (f files) exists(name string) bool {
	_, err := f.root.Stat(name)
	return err == nil
}

func (f files) hostname(name string) error {
	if err := f.root.WriteFile("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	old, err := f.root.ReadFile("/etc/hosts", maxFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return f.root.WriteFile("/etc/hosts", []byte(hosts(string(old), name)), 0o644)
}

// hosts gives /etc/hosts with the machine's own name at 127.0.1.1, as Debian
// has it, and localhost where it was missing; all other lines stay.
func hosts(old, name string) string {
	var b strings.Builder
	has := map[string]bool{}
	for line := range strings.Lines(old) {
		fields := strings.Fields(line)
		if len(fields) > 0 {
			if fields[0] == "127.0.1.1" {
				continue
			}
			has[fields[0]] = true
		}
		b.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	if !has["127.0.0.1"] {
		b.WriteString("127.0.0.1\tlocalhost\n")
	}
	if !has["::1"] {
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	short, _, dotted := strings.Cut(name, ".")
	if dotted {
		name += " " + short
	}
	b.WriteString("127.0.1.1\t" + name + "\n")
	return b.String()
}

// machineID writes the id before systemd could find none and take the boot for
// the first. D-Bus's, where it has one of its own, becomes a link to it.
func (f files) machineID(id string) error {
	if err := f.root.WriteFile("/etc/machine-id", []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	if f.exists("/var/lib/dbus") {
		return f.root.Symlink("/etc/machine-id", "/var/lib/dbus/machine-id")
	}
	return nil
}

// hostKey writes the ed25519 key, also where there is no sshd yet, and takes
// away every other host key: they came with the image or a template, so
// somebody else has them too.
func (f files) hostKey(private []byte, public string) error {
	const name = "/etc/ssh/ssh_host_ed25519_key"
	if err := f.root.WriteFile(name, private, 0o600); err != nil {
		return err
	}
	if err := f.root.WriteFile(name+".pub", []byte(strings.TrimSpace(public)+"\n"), 0o644); err != nil {
		return err
	}
	names, err := f.root.ReadDir("/etc/ssh")
	if err != nil {
		return err
	}
	for _, n := range names {
		if !isHostKey(n) || strings.HasPrefix(n, "ssh_host_ed25519_key") {
			continue
		}
		if err := f.root.Remove("/etc/ssh/" + n); err != nil {
			return err
		}
	}
	return nil
}

func isHostKey(name string) bool {
	n, ok := strings.CutPrefix(name, "ssh_host_")
	n = strings.TrimSuffix(n, ".pub")
	return ok && strings.HasSuffix(n, "_key")
}

// The lines of authorized_keys between these are banger's; all others are
// left alone.
const (
	keysBegin = "# banger: keys of the host, written anew at every start"
	keysEnd   = "# banger: end"
)

func (f files) authorizedKeys(keys []string) error {
	const name = "/.ssh/authorized_keys"
	old, err := f.home.ReadFile(name, maxFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	text := authorized(string(old), keys)
	if text == string(old) {
		return nil
	}
	dir, err := f.home.MkdirAll("/.ssh", 0o700)
	if err != nil {
		return err
	}
	dir.Close()
	if err := f.home.WriteFile(name, []byte(text), 0o600); err != nil {
		return err
	}
	return f.home.Chmod("/.ssh", 0o700)
}

func authorized(old string, keys []string) string {
	var b strings.Builder
	ours := false
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case line == keysBegin:
			ours = true
		case line == keysEnd:
			ours = false
		case !ours:
			b.WriteString(line + "\n")
		}
	}
	if len(keys) == 0 {
		return b.String()
	}
	b.WriteString(keysBegin + "\n")
	for _, k := range keys {
		b.WriteString(strings.TrimSpace(k) + "\n")
	}
	b.WriteString(keysEnd + "\n")
	return b.String()
}

const (
	sshdConfig = "/etc/ssh/sshd_config"
	sshdDropIn = "/etc/ssh/sshd_config.d/00-banger.conf"
	sshdRules  = `# Written by banger at every start.
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
`
	sshdInclude = "Include /etc/ssh/sshd_config.d/*.conf"
)

// sshd sets the rules for logging in where the image has sshd. The first value
// sshd reads counts, so the directory must be included before all others.
func (f files) sshd() error {
	if !f.exists("/usr/sbin/sshd") {
		return errSkip
	}
	if err := f.put(sshdDropIn, sshdRules, 0o644); err != nil {
		return err
	}
	old, err := f.root.ReadFile(sshdConfig, maxFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if text, changed := withInclude(string(old)); changed {
		return f.root.WriteFile(sshdConfig, []byte(text), 0o644)
	}
	return nil
}

func withInclude(config string) (string, bool) {
	for line := range strings.Lines(config) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if strings.EqualFold(fields[0], "Include") && strings.Contains(line, "sshd_config.d/") {
			return config, false
		}
		break // another setting comes first
	}
	return sshdInclude + "\n" + config, true
}

// resolver writes a regular file, in place of a link to a service that may
// never run.
func (f files) resolver(servers []string) error {
	var b strings.Builder
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err == nil {
			b.WriteString("nameserver " + a.String() + "\n")
		}
	}
	return f.put("/etc/resolv.conf", b.String(), 0o644)
}

func (f files) timezone(name string) error {
	zone := "/usr/share/zoneinfo/" + name
	if !f.exists(zone) {
		return fmt.Errorf("the image has no zone %s", name)
	}
	if err := f.root.Symlink(zone, "/etc/localtime"); err != nil {
		return err
	}
	return f.root.WriteFile("/etc/timezone", []byte(name+"\n"), 0o644)
}

const (
	envDir     = "/etc/environment.d/90-banger.conf" // systemd's user sessions
	envProfile = "/etc/profile.d/banger.sh"          // login shells
)

// environment writes the variables for logins, or takes them away.
func (f files) environment(env []wire.KV) error {
	if len(env) == 0 {
		return errors.Join(f.root.Remove(envDir), f.root.Remove(envProfile))
	}
	var conf, profile strings.Builder
	for _, kv := range env {
		conf.WriteString(kv.Key + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(kv.Value) + "\"\n")
		profile.WriteString("export " + kv.Key + "='" + strings.ReplaceAll(kv.Value, "'", `'\''`) + "'\n")
	}
	if err := f.root.WriteFile(envDir, []byte(conf.String()), 0o644); err != nil {
		return err
	}
	return f.root.WriteFile(envProfile, []byte(profile.String()), 0o644)
}
