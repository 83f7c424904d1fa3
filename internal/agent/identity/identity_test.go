package identity_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/agent/identity"
	"github.com/banger-dev/banger/internal/agent/inroot"
	"github.com/banger-dev/banger/internal/agent/netcfg"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// machine records what it is told, in order.
type machine struct {
	calls []string
	token []byte
	net   netcfg.Config
	fail  string // the call that fails
}

func (m *machine) call(name string) error {
	m.calls = append(m.calls, name)
	if m.fail == name {
		return errors.New("refused")
	}
	return nil
}
func (m *machine) SetToken(t []byte)             { m.token = t; _ = m.call("token") }
func (m *machine) AddEntropy([]byte) error       { return m.call("entropy") }
func (m *machine) SetClock(time.Time) error      { return m.call("clock") }
func (m *machine) SetHostname(string) error      { return m.call("hostname") }
func (m *machine) ShowBootID(string) error       { return m.call("boot id") }
func (m *machine) Network(c netcfg.Config) error { m.net = c; return m.call("network") }

func guest(t *testing.T, m *machine) (identity.Guest, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	open := func(p string) *inroot.Root {
		r, err := inroot.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	return identity.Guest{Root: open(dir), Home: open(filepath.Join(dir, "root")), Machine: m}, dir
}

func full() wire.Identity {
	return wire.Identity{
		Token: bytes.Repeat([]byte{1}, 32), Entropy: bytes.Repeat([]byte{2}, 64),
		Hostname: "box", MachineID: "0123456789abcdef0123456789abcdef",
		BootID: "01234567-89ab-4def-8123-456789abcdef", ClockUnixNS: 1,
		HostKey: []byte("private\n"), HostKeyPub: "ssh-ed25519 AAAA host",
		Authorized: []string{"ssh-ed25519 BBBB me"},
		MAC:        "52:54:00:00:00:01",
		Net:        wire.Net{IPv4: "10.0.2.15/24", Gateway4: "10.0.2.2", DNS: []string{"10.0.2.3", "fd00::3"}, MTU: 1400},
		Env:        []wire.KV{{Key: "A", Value: `it's "$5" \`}},
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, dir, name, text string, mode fs.FileMode) {
	t.Helper()
	p := filepath.Join(dir, name)
	got, err := os.ReadFile(p)
	if err != nil || string(got) != text {
		t.Errorf("%s: %q, %v; want %q", name, got, err, text)
		return
	}
	if info, _ := os.Lstat(p); info.Mode() != mode {
		t.Errorf("%s: mode %v, want %v", name, info.Mode(), mode)
	}
}

func TestIdentityIsWrittenWholeAndTwiceTheSame(t *testing.T) {
	m := &machine{}
	g, dir := guest(t, m)
	put(t, dir, "usr/sbin/sshd", "")
	put(t, dir, "etc/ssh/sshd_config", "# text\nPasswordAuthentication yes\n")
	put(t, dir, "etc/ssh/ssh_host_rsa_key", "the image's")
	put(t, dir, "etc/ssh/ssh_host_rsa_key.pub", "the image's")
	put(t, dir, "etc/ssh/moduli", "stays")
	put(t, dir, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 template\n10.1.1.1 mine\n")
	put(t, dir, "var/lib/dbus/machine-id", "template's")
	put(t, dir, "root/.ssh/authorized_keys", "ssh-rsa CCCC own\n")
	if err := os.Symlink("/run/systemd/resolve/stub-resolv.conf", filepath.Join(dir, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m.calls = nil
		reply, err := identity.Apply(t.Context(), g, full())
		if err != nil || len(reply.Warnings) != 0 {
			t.Fatal(err, reply.Warnings)
		}
		if len(reply.Steps) != 13 {
			t.Errorf("%d steps: %v", len(reply.Steps), reply.Steps)
		}
		if !slices.Equal(m.calls, []string{"token", "entropy", "clock", "hostname", "boot id", "network"}) {
			t.Errorf("calls %v", m.calls)
		}
		want(t, dir, "etc/hostname", "box\n", 0o644)
		want(t, dir, "etc/hosts", "127.0.0.1 localhost\n10.1.1.1 mine\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n", 0o644)
		want(t, dir, "etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0o444)
		want(t, dir, "etc/ssh/ssh_host_ed25519_key", "private\n", 0o600)
		want(t, dir, "etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA host\n", 0o644)
		want(t, dir, "etc/ssh/moduli", "stays", 0o755)
		want(t, dir, "etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n# text\nPasswordAuthentication yes\n", 0o644)
		want(t, dir, "etc/resolv.conf", "nameserver 10.0.2.3\nnameserver fd00::3\n", 0o644)
		want(t, dir, "etc/profile.d/banger.sh", "export A='it'\\''s \"$5\" \\'\n", 0o644)
		want(t, dir, "root/.ssh/authorized_keys", "ssh-rsa CCCC own\n"+
			"# banger: keys of the host, written anew at every start\nssh-ed25519 BBBB me\n# banger: end\n", 0o600)
		if _, err := os.Lstat(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key")); !errors.Is(err, fs.ErrNotExist) {
			t.Error("the image's RSA key is still there")
		}
		if link, _ := os.Readlink(filepath.Join(dir, "var/lib/dbus/machine-id")); link != "/etc/machine-id" {
			t.Errorf("D-Bus's machine id links to %q", link)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "etc/ssh/sshd_config.d/00-banger.conf")); !strings.Contains(string(b), "PasswordAuthentication no\n") {
		t.Errorf("sshd's rules: %q", b)
	}
	if m.net.MTU != 1400 || m.net.IPv4.String() != "10.0.2.15/24" || !bytes.Equal(m.token, full().Token) {
		t.Errorf("network %+v, token %x", m.net, m.token)
	}
}

func TestAnEmptyImageGetsTheFilesItNeeds(t *testing.T) {
	g, dir := guest(t, &machine{})
	id := full()
	id.Authorized, id.Env = nil, nil
	reply, err := identity.Apply(t.Context(), g, id)
	if err != nil || len(reply.Warnings) != 0 {
		t.Fatal(err, reply.Warnings)
	}
	want(t, dir, "etc/hostname", "box\n", 0o644)
	for _, none := range []string{"etc/ssh/sshd_config", "etc/ssh/sshd_config.d", "var", "root/.ssh", "etc/profile.d/banger.sh"} {
		if _, err := os.Lstat(filepath.Join(dir, none)); err == nil {
			t.Errorf("%s was made for nothing", none)
		}
	}
}

func TestAHostileImageCostsWarningsAndNothingElse(t *testing.T) {
	g, dir := guest(t, &machine{})
	outside := t.TempDir()
	// Links never lead out: this one leads to a place inside that is a file.
	put(t, dir, outside, "not a directory")
	if err := os.Symlink(outside, filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	reply, err := identity.Apply(t.Context(), g, full())
	if err != nil {
		t.Fatal(err)
	}
	if len(reply.Warnings) < 4 {
		t.Errorf("warnings: %v", reply.Warnings)
	}
	if names, _ := os.ReadDir(outside); len(names) != 0 {
		t.Errorf("written outside: %v", names)
	}
}

func TestEssentialStepsEndItWithAnError(t *testing.T) {
	for _, name := range []string{"entropy", "clock", "hostname", "network"} {
		g, _ := guest(t, &machine{fail: name})
		if _, err := identity.Apply(t.Context(), g, full()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s refused: %v", name, err)
		}
	}
	g, _ := guest(t, &machine{fail: "boot id"})
	reply, err := identity.Apply(t.Context(), g, full())
	if err != nil || len(reply.Warnings) != 1 || !strings.HasPrefix(reply.Warnings[0], "boot id: ") {
		t.Errorf("boot id refused: %v, %v", err, reply.Warnings)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := identity.Apply(ctx, g, full()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestABadIdentityChangesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*wire.Identity){
		"token":       func(id *wire.Identity) { id.Token = id.Token[:8] },
		"entropy":     func(id *wire.Identity) { id.Entropy = nil },
		"hostname":    func(id *wire.Identity) { id.Hostname = "a b" },
		"two lines":   func(id *wire.Identity) { id.Authorized = []string{"a\nb"} },
		"machine id":  func(id *wire.Identity) { id.MachineID = strings.Repeat("0", 32) },
		"boot id":     func(id *wire.Identity) { id.BootID = "x" },
		"address":     func(id *wire.Identity) { id.Net.IPv4 = "10.0.2.15" },
		"dns":         func(id *wire.Identity) { id.Net.DNS = []string{"one"} },
		"timezone":    func(id *wire.Identity) { id.Timezone = "../../etc/passwd" },
		"environment": func(id *wire.Identity) { id.Env = []wire.KV{{Key: "A B"}} },
		"mtu":         func(id *wire.Identity) { id.Net.MTU = 1 << 20 },
	} {
		m := &machine{}
		g, dir := guest(t, m)
		id := full()
		spoil(&id)
		if _, err := identity.Apply(t.Context(), g, id); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "etc")); err == nil || len(m.calls) != 0 {
			t.Errorf("%s: changed something", name)
		}
	}
}
