package boot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/inroot"
)

func TestParseModules(t *testing.T) {
	got, err := ParseModules("# first the bus\n/banger/ko/virtio_mmio.ko\n\n/m/overlay.ko.xz  # the root\n")
	if err != nil || !slices.Equal(got, []string{"/banger/ko/virtio_mmio.ko", "/m/overlay.ko.xz"}) {
		t.Errorf("%q, %v", got, err)
	}
	if moduleFlags(got[0]) != 0 || moduleFlags(got[1]) != unix.MODULE_INIT_COMPRESSED_FILE {
		t.Error("wrong flags for finit_module")
	}
	for _, bad := range []string{"overlay.ko", "/etc/passwd"} {
		if _, err := ParseModules("/a.ko\n" + bad); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseSeed(t *testing.T) {
	s, err := ParseSeed([]byte(`{"token":"AQID","later":1}`))
	if err != nil || !bytes.Equal(s.Token, []byte{1, 2, 3}) || !slices.Equal(s.Disks, []string{"image"}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "{}", `{"token":"!"}`, `{"token":""}`, strings.Repeat(" ", maxSeed+1)} {
		if _, err := ParseSeed([]byte(bad)); err == nil {
			t.Errorf("%.20q was taken", bad)
		}
	}
}

func TestParseOptions(t *testing.T) {
	o := parseOptions("quiet init=/first banger.trace init=/sbin/own -- init=/not-ours")
	if o.init != "/sbin/own" || !o.trace {
		t.Errorf("%+v", o)
	}
	if o := parseOptions("rdinit=/init banger.trace=0\n"); o.init != "" || o.trace {
		t.Errorf("%+v", o)
	}
}

func FuzzSeedAndModules(f *testing.F) {
	f.Add([]byte(`{"token":"AQID"}`))
	f.Add([]byte("/a.ko\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSeed(b); err == nil && len(s.Token) == 0 {
			t.Error("a seed without a token")
		}
		list, err := ParseModules(string(b))
		for _, p := range list {
			if err == nil && !strings.HasPrefix(p, "/") {
				t.Errorf("path %q", p)
			}
		}
	})
}

func TestMountPointsAreDisksInOrderAndUnescaped(t *testing.T) {
	const info = `22 1 0:20 / / rw,relatime - overlay overlay rw
23 22 0:21 / /proc rw - proc proc rw
24 22 254:2 / /root rw,noatime shared:3 master:1 - ext4 /dev/vdc rw
25 24 254:1 /a /root/with\040space rw - ext4 /dev/vdb rw
26 22 0:5 / /run rw - tmpfs tmpfs rw
garbage
`
	got := mountPoints(bufio.NewScanner(strings.NewReader(info)))
	if !slices.Equal(got, []string{"/root", "/root/with space"}) {
		t.Errorf("%q", got)
	}
}

// image makes a root with the named executables.
func image(t *testing.T, files ...string) (*inroot.Root, string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestInitIsFoundInsideTheImageOnly(t *testing.T) {
	root, dir := image(t, "usr/lib/systemd/systemd", "usr/sbin/x")
	link(t, "usr/lib", filepath.Join(dir, "lib"))
	link(t, "usr/sbin", filepath.Join(dir, "sbin"))
	if got := lookInit(root); got != "/usr/lib/systemd/systemd" {
		t.Errorf("without the link: %q", got)
	}
	link(t, "/lib/systemd/systemd", filepath.Join(dir, "usr/sbin/init"))
	if got := lookInit(root); got != "/sbin/init" {
		t.Errorf("through the image's own links: %q", got)
	}
	// The host has a /bin/sh; the image does not.
	root, dir = image(t, "sbin/y")
	link(t, "/bin/sh", filepath.Join(dir, "sbin/init"))
	if got := lookInit(root); got != "" {
		t.Errorf("a link that leads nowhere in the image: %q", got)
	}
	root, dir = image(t)
	if err := os.MkdirAll(filepath.Join(dir, "sbin/init"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := lookInit(root); got != "" {
		t.Errorf("a directory: %q", got)
	}
}

func TestBusyboxIsAnInitOnlyWithSomethingToStart(t *testing.T) {
	root, dir := image(t, "bin/busybox", "sbin/y")
	link(t, "/bin/busybox", filepath.Join(dir, "sbin/init"))
	if got := lookInit(root); got != "" {
		t.Errorf("a container's busybox: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "sbin/openrc"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := lookInit(root); got != "/sbin/init" {
		t.Errorf("with openrc: %q", got)
	}
}

func TestCopyTreeKeepsWhatIsThereAndFollowsNothing(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	for p, text := range map[string]string{
		filepath.Join(from, ".bashrc"): "image", filepath.Join(from, "d/f"): "deep", filepath.Join(from, "d/own"): "image",
		filepath.Join(to, "d/own"): "host", secret: "s",
	} {
		if err := os.MkdirAll(filepath.Dir(p), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	link(t, secret, filepath.Join(from, "l"))
	link(t, t.TempDir(), filepath.Join(to, "aside"))
	if err := os.Mkdir(filepath.Join(from, "aside"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "aside/f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(from, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := copyTree(from, to, true); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{".bashrc": "image", "d/f": "deep", "d/own": "host"} {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(to, ".bashrc")); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info, err)
	}
	if target, err := os.Readlink(filepath.Join(to, "l")); err != nil || target != secret {
		t.Errorf("link %q, %v", target, err)
	}
	if names, _ := os.ReadDir(filepath.Join(to, "aside")); len(names) != 0 {
		t.Error("copied through a link that was there")
	}
	if _, err := os.Lstat(filepath.Join(to, "pipe")); err == nil {
		t.Error("a pipe was copied")
	}
}

// pipes is the line between PID 1 and the agent.
func pipes(t *testing.T) (pid1, agent *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	pid1, agent = os.NewFile(uintptr(pair[0]), "pid1"), os.NewFile(uintptr(pair[1]), "agent")
	t.Cleanup(func() { pid1.Close(); agent.Close() })
	return pid1, agent
}

func control(t *testing.T, h Handoff) (*Control, *os.File) {
	t.Helper()
	pid1, agent := pipes(t)
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pid1.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	c, err := newControl(agent)
	if err != nil {
		t.Fatal(err)
	}
	return c, pid1
}

func TestHandoverIsKnownByTheLineClosing(t *testing.T) {
	c, pid1 := control(t, Handoff{Token: []byte("t"), Init: "/sbin/init", Disks: map[string]string{"image": "vda"}})
	if c.Handoff.Disks["image"] != "vda" || c.Handed() {
		t.Errorf("%+v", c.Handoff)
	}
	commands := make(chan byte)
	go (&pid1Reader{pid1}).serve(commands)

	failed := make(chan error, 1)
	go func() { failed <- c.Handover() }()
	if cmd := <-commands; cmd != cmdHandover {
		t.Fatalf("command %q", cmd)
	}
	if _, err := pid1.WriteString("exec /sbin/init: no such file\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "no such file") || c.Handed() {
		t.Errorf("failed handover: %v", err)
	}
	if asked, err := c.Stop(true); !asked || err != nil {
		t.Errorf("stop before the handover: %v, %v", asked, err)
	}
	if cmd := <-commands; cmd != cmdReboot {
		t.Errorf("command %q", cmd)
	}
	go func() { failed <- c.Handover() }()
	<-commands
	pid1.Close() // as exec does
	if err := <-failed; err != nil || !c.Handed() {
		t.Errorf("handover: %v", err)
	}
	if asked, err := c.Stop(false); asked || err != nil {
		t.Errorf("stop after the handover: %v, %v", asked, err)
	}
	if err := c.Handover(); err != nil {
		t.Errorf("a second handover: %v", err)
	}
}

// pid1Reader reads commands as PID 1 does.
type pid1Reader struct{ conn *os.File }

func (p *pid1Reader) serve(commands chan<- byte) { (&pid1{conn: p.conn}).listen(commands) }

func TestHandoverWithoutAnInitDoesNothing(t *testing.T) {
	c, _ := control(t, Handoff{})
	if err := c.Handover(); err != nil || c.Handed() {
		t.Errorf("%v", err)
	}
}

func TestABrokenHandoffIsAnError(t *testing.T) {
	pid1, agent := pipes(t)
	if _, err := pid1.WriteString("not json\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := newControl(agent); err == nil {
		t.Error("taken")
	}
}

func TestSystemdIsToldOfTheModulesAndOfFilesInTmp(t *testing.T) {
	_, dir := image(t, "lib/systemd/systemd", "lib/other")
	for init, told := range map[string]bool{"/lib/other": false, "/lib/systemd/systemd": true} {
		if err := tellSystemd(dir, init, "/usr/lib/modules/6.12+deb12-x"); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(filepath.Join(dir, `run/systemd/system/usr-lib-modules-6.12\x2bdeb12\x2dx.mount.d/banger.conf`))
		if (err == nil) != told {
			t.Errorf("%s: %v", init, err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "run/tmpfiles.d/tmp.conf"))
		if (err == nil) != told || (told && !strings.Contains(string(text), "\nq /tmp ")) {
			t.Errorf("%s: tmp.conf: %q, %v", init, text, err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSystemdIsKnownBehindLinks(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{"init": "lib/systemd", "lib": "usr"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	if IsSystemd(filepath.Join(dir, "init")) {
		t.Error("a link to nothing")
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/systemd"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if !IsSystemd(filepath.Join(dir, "init")) || IsSystemd("/sbin/none") || IsSystemd("") {
		t.Error("not known")
	}
}
