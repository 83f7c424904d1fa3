//go:build e2e

package system_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest/guestimage"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/image/ext4"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/debian"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/launch"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/kernels"
)

// bootLimit and endLimit are for a host whose cores are busy with other work.
const (
	bootLimit = 2 * time.Minute
	endLimit  = 30 * time.Second
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Verb {
		os.Exit(launch.Main())
	}
	os.Exit(m.Run())
}

// parts are what every guest here is made of, made once.
type parts struct {
	kernel kernel.Kernel
	initrd string
	probe  []byte
}

var (
	partsOnce sync.Once
	partsMade parts
)

func makeParts(t *testing.T) parts {
	t.Helper()
	partsOnce.Do(func() {
		recipes, err := kernel.ReadRecipes(kernels.Recipes)
		check(t, err)
		cache := guestimage.Cache(t)
		store, err := kernel.Open(filepath.Join(cache, "kernels"), recipes, &debian.Source{Cache: cache, Root: os.DirFS("/")})
		check(t, err)
		k, err := store.Ensure(t.Context(), "generic-6.12", func(op.Event) {})
		check(t, err)
		dir, err := os.MkdirTemp("", "agent-e2e") // outlives the first test
		check(t, err)
		agent, probe := filepath.Join(dir, "agent"), filepath.Join(dir, "probe")
		build(t, agent, "../../../cmd/banger-vsock-agent")
		build(t, probe, "./testdata/probe")
		initrd, err := initramfs.Build(t.Context(), k, agent, dir)
		check(t, err)
		b, err := os.ReadFile(probe)
		check(t, err)
		partsMade = parts{kernel: k, initrd: initrd, probe: b}
	})
	if partsMade.initrd == "" {
		t.Fatal("the parts could not be made; see the first test")
	}
	return partsMade
}

func build(t *testing.T, to, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, out)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry is one thing in an image besides /probe: a link, or a program that is
// the probe again.
type entry struct{ name, link string }

// vm is a VM of these tests: disks and secrets that outlive its machines.
type vm struct {
	t     *testing.T
	parts parts
	dir   string
	token []byte
	disks []hypervisor.Disk
}

func newVM(t *testing.T, entries ...entry) *vm {
	t.Helper()
	v := &vm{t: t, parts: makeParts(t), dir: t.TempDir(), token: make([]byte, 32)}
	_, _ = rand.Read(v.token)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), time.Unix(1e9, 0)
		check(t, w.WriteHeader(&h))
		_, err := w.Write(data)
		check(t, err)
	}
	add(tar.Header{Name: "probe", Typeflag: tar.TypeReg, Mode: 0o755}, v.parts.probe)
	for _, e := range entries {
		switch {
		case e.link != "":
			add(tar.Header{Name: e.name, Linkname: e.link, Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
		case strings.HasSuffix(e.name, "/"):
			add(tar.Header{Name: e.name, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		default:
			add(tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o755}, v.parts.probe)
		}
	}
	check(t, w.Close())
	_, err := ext4.FromTar(t.Context(), &b, v.path("image"), ext4.Options{Label: "image"})
	check(t, err)
	for _, name := range []string{"system", "work"} {
		check(t, new(disk.Maker).Make(t.Context(), v.path(name), 256<<20, name))
	}
	v.disks = []hypervisor.Disk{
		{ID: "image", Path: v.path("image"), ReadOnly: true},
		{ID: "system", Path: v.path("system")},
		{ID: "work", Path: v.path("work")},
		{ID: "modules", Path: v.parts.kernel.Modules, ReadOnly: true},
	}
	return v
}

func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }

// machine is a running machine of a VM and the line to its agent.
type machine struct {
	*guest.Client
	t  *testing.T
	hv hypervisor.Machine
}

// boot starts a machine on the VM's disks and waits for its agent.
func (v *vm) boot(args ...string) *machine {
	v.t.Helper()
	exe, err := os.Executable()
	check(v.t, err)
	driver := qemu.New(qemu.Options{Launcher: []string{exe, launch.Verb}})
	subject := hypervisortest.Subject{Kernel: v.parts.kernel.VMLinux, HZ: v.parts.kernel.Manifest.HZ}
	spec := subject.Spec(v.t, "agent")
	spec.Memory = 512 << 20
	spec.Disks = v.disks
	spec.Cmdline = strings.Join(append([]string{"quiet", "cryptomgr.notests", "tsc=reliable", "banger.trace"}, args...), " ")
	spec.Initrd = filepath.Join(spec.Dir, "initrd")
	seed, err := json.Marshal(boot.Seed{Token: v.token, Disks: []string{"image", "system", "work", "modules"}})
	check(v.t, err)
	check(v.t, initramfs.WithSeed(v.t.Context(), v.parts.initrd, spec.Initrd, seed))
	m := hypervisortest.Start(v.t, driver, spec)
	ctx, cancel := context.WithTimeout(v.t.Context(), bootLimit)
	defer cancel()
	c, err := guest.Dial(ctx, m.Ref().Endpoint, v.token, guest.Options{})
	check(v.t, err)
	v.t.Cleanup(func() { c.Close() })
	return &machine{Client: c, t: v.t, hv: m}
}

// run runs a command in the guest and gives its output and exit code.
func (m *machine) run(argv ...string) (string, int) {
	m.t.Helper()
	p, err := m.Exec(m.t.Context(), wire.ExecRequest{ID: rand.Text(), Argv: argv})
	check(m.t, err)
	defer p.Close()
	var out strings.Builder
	for {
		o, err := p.Recv()
		if err != nil {
			m.t.Fatalf("%v: %v", argv, err)
		}
		for _, c := range []*wire.Chunk{o.Stdout, o.Stderr} {
			if c != nil {
				out.Write(c.Data)
			}
		}
		if o.Exit != nil {
			_ = p.Send(wire.ExecInput{End: "done"})
			return out.String(), int(o.Exit.Code)
		}
	}
}

// see runs the probe, which has to succeed, and gives what it printed.
func (m *machine) see(args ...string) string {
	m.t.Helper()
	out, code := m.run(append([]string{"/probe"}, args...)...)
	if code != 0 {
		m.t.Fatalf("probe %v: exit %d: %s", args, code, out)
	}
	return out
}

// ended waits until the hypervisor's process has ended.
func (m *machine) ended() {
	m.t.Helper()
	start := time.Now()
	select {
	case <-m.hv.Done():
		m.t.Logf("the machine ended after %.1f s: %+v", time.Since(start).Seconds(), m.hv.Exit())
	case <-time.After(endLimit):
		m.t.Fatal("the hypervisor still runs")
	}
}

func (m *machine) stop() {
	m.t.Helper()
	check(m.t, m.Shutdown(m.t.Context(), wire.ShutdownRequest{TimeoutMS: uint32(endLimit.Milliseconds())}))
	m.ended()
}

// name makes an identity.
func (v *vm) name(name string) (wire.Identity, ssh.Signer) {
	v.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	check(v.t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	check(v.t, err)
	signer, err := ssh.NewSignerFromKey(private)
	check(v.t, err)
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	id := wire.Identity{
		Token: v.token, VM: name, Hostname: name, MachineID: strings.Repeat("ab", 16),
		BootID: "01234567-89ab-4def-8123-456789abcdef", Entropy: make([]byte, 64), ClockUnixNS: time.Now().UnixNano(),
		HostKey: pem.EncodeToMemory(block), HostKeyPub: public, Authorized: []string{public},
	}
	_, _ = rand.Read(id.Entropy)
	return id, signer
}

// TestScratchImage boots an image that holds one program and nothing else.
func TestScratchImage(t *testing.T) {
	v := newVM(t)
	m := v.boot()
	if i := m.Info(); i.State != "alone" || i.HasInit || i.Kernel != v.parts.kernel.Manifest.Release {
		t.Errorf("hello: %+v", i)
	}
	id, signer := v.name("scratch")
	v.token = bytes.Repeat([]byte{7}, 32)
	id.Token = v.token
	reply, err := m.Identity(t.Context(), id)
	check(t, err)
	if len(reply.Warnings) != 0 || len(reply.Steps) < 8 {
		t.Errorf("identity: %+v", reply)
	}
	check(t, m.Handover(t.Context())) // nothing to hand over to
	for path, want := range map[string]string{
		"/etc/hostname": "scratch\n", "/proc/sys/kernel/hostname": "scratch\n",
		"/etc/machine-id": id.MachineID + "\n", "/proc/sys/kernel/random/boot_id": id.BootID + "\n",
		"/proc/self/oom_score_adj": "0\n", "/proc/self/cgroup": "0::/" + wire.CommandCgroup + "\n",
	} {
		if got := m.see("cat", path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if modules := m.see("ls", "/lib/modules/"+v.parts.kernel.Manifest.Release); !strings.Contains(modules, "modules.dep") {
		t.Errorf("modules: %q", modules)
	}
	if fds := strings.Fields(m.see("ls", "/proc/self/fd")); len(fds) > 2*5 { // 0, 1, 2, the directory, the poller
		t.Errorf("commands inherit files: %q", fds)
	}
	for _, gone := range []string{"/init", "/banger", "/newroot"} {
		if out, code := m.run("/probe", "ls", gone); code == 0 {
			t.Errorf("%s is left of the initramfs: %s", gone, out)
		}
	}
	t.Run("SSH", func(t *testing.T) { sshIn(t, m, signer) })
	t.Run("Grow", func(t *testing.T) { grow(t, v, m) })
	m.see("write", "/kept", "1")
	m.see("write", "/root/kept", "2")
	m.stop()

	m = v.boot()
	if got := m.see("cat", "/kept", "/root/kept", "/etc/hostname"); got != "12scratch\n" {
		t.Errorf("after a restart: %q", got)
	}
	m.stop()
}

// sshIn logs in to the agent's own server.
func sshIn(t *testing.T, m *machine, key ssh.Signer) {
	conn, err := m.DialGuest(t.Context(), "agent", "ssh")
	check(t, err)
	c, channels, requests, err := ssh.NewClientConn(conn, "", &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(key.PublicKey()),
	})
	check(t, err)
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	s, err := client.NewSession()
	check(t, err)
	// There is no shell: the words are taken as they stand.
	out, err := s.Output("/probe cat /etc/hostname")
	if err != nil || string(out) != "scratch\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func grow(t *testing.T, v *vm, m *machine) {
	before, err := m.Stats(t.Context())
	check(t, err)
	const size = 512 << 20
	grower, ok := hypervisor.As[hypervisor.DiskGrower](m.hv)
	if !ok {
		t.Fatal("the driver cannot grow disks")
	}
	for _, name := range []string{"system", "work"} {
		check(t, disk.Grow(v.path(name), size))
		check(t, grower.GrowDisk(t.Context(), name, size))
	}
	check(t, m.Grow(t.Context(), wire.GrowRequest{Disks: []string{"system", "work"}}))
	after, err := m.Stats(t.Context())
	check(t, err)
	if after.SystemDiskTotal < before.SystemDiskTotal*3/2 || after.WorkDiskTotal < before.WorkDiskTotal*3/2 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if err := m.Grow(t.Context(), wire.GrowRequest{Disks: []string{"image"}}); err == nil {
		t.Error("the image grew")
	}
}

// TestHostileImage boots an image whose directories are links to where nothing
// may be written.
func TestHostileImage(t *testing.T) {
	v := newVM(t, entry{"etc", "/proc/sys"}, entry{"root", "/dev"}, entry{"lib", "/lib"},
		entry{"var/", ""}, entry{"var/lib", "../../../../../sys"}, entry{"run", "/nowhere/at/all"})
	m := v.boot()
	id, _ := v.name("hostile")
	reply, err := m.Identity(t.Context(), id)
	check(t, err)
	t.Logf("warnings: %q", reply.Warnings)
	if len(reply.Warnings) == 0 {
		t.Error("nothing was warned of")
	}
	if got := m.see("cat", "/proc/sys/kernel/hostname"); got != "hostile\n" {
		t.Errorf("hostname %q", got)
	}
	check(t, m.Sync(t.Context()))
	m.stop()
}

// TestGuestEndsTheMachine stops guests from inside. (An orderly poweroff by the
// agent's PID 1 ends every other test here.)
func TestGuestEndsTheMachine(t *testing.T) {
	v := newVM(t)
	for name, args := range map[string][]string{
		"reboot(2)":        {"reboot"},
		"SIGUSR2 to PID 1": {"kill", "1", "12"}, // as busybox's poweroff does
		"the agent's end":  {"killagent"},
	} {
		t.Run(name, func(t *testing.T) {
			v := *v
			v.t = t
			m := v.boot()
			p, err := m.Exec(t.Context(), wire.ExecRequest{ID: rand.Text(), Argv: append([]string{"/probe"}, args...)})
			check(t, err)
			defer p.Close()
			m.ended()
		})
	}
}

// TestHandoverToTheImagesInit lets PID 1 become another program under the
// agent's feet.
func TestHandoverToTheImagesInit(t *testing.T) {
	v := newVM(t, entry{"usr/", ""}, entry{"usr/sbin/", ""}, entry{"usr/sbin/init", ""}, entry{"sbin", "usr/sbin"})
	m := v.boot("word", "--", "single")
	if i := m.Info(); i.State != "early" || !i.HasInit {
		t.Errorf("hello: %+v", i)
	}
	prep, err := m.Prepare(t.Context(), wire.PrepareRequest{Rehearse: true})
	check(t, err)
	if prep.Clock != "tsc" {
		t.Errorf("clock %q", prep.Clock)
	}
	id, _ := v.name("handed")
	_, err = m.Identity(t.Context(), id)
	check(t, err)
	check(t, m.Handover(t.Context()))
	info, err := m.Hello(t.Context())
	check(t, err)
	if info.State != "init" {
		t.Errorf("state %q", info.State)
	}
	if got := m.see("cat", "/proc/1/comm"); got != "init\n" {
		t.Errorf("PID 1 is %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	want := "/sbin/init word single " + id.MachineID + "\n"
	for got := ""; got != want; got, _ = m.run("/probe", "cat", "/run/init") {
		if ctx.Err() != nil {
			t.Fatalf("the init saw %q, want %q", got, want)
		}
	}
	if _, err := m.Wait(t.Context(), wire.WaitRequest{For: "system"}); err != nil {
		t.Error(err)
	}
	// Nobody here knows how to ask this init: the agent's backstop ends it.
	check(t, m.Shutdown(t.Context(), wire.ShutdownRequest{TimeoutMS: 2000}))
	m.ended()
}

// TestBootWithoutAnImageSaysWhy starts a machine that lacks its first disk.
func TestBootWithoutAnImageSaysWhy(t *testing.T) {
	v := newVM(t)
	// An image of another kind of filesystem fails at once.
	check(t, os.WriteFile(v.path("junk"), make([]byte, 1<<20), 0o600))
	v.disks[0].Path = v.path("junk")
	exe, err := os.Executable()
	check(t, err)
	driver := qemu.New(qemu.Options{Launcher: []string{exe, launch.Verb}})
	spec := hypervisortest.Subject{Kernel: v.parts.kernel.VMLinux, HZ: v.parts.kernel.Manifest.HZ}.Spec(t, "broken")
	spec.Disks, spec.Initrd = v.disks, filepath.Join(spec.Dir, "initrd")
	check(t, initramfs.WithSeed(t.Context(), v.parts.initrd, spec.Initrd, []byte(`{"token":"AQID"}`)))
	m := hypervisortest.Start(t, driver, spec)
	select {
	case <-m.Done():
	case <-time.After(bootLimit):
		t.Fatal("the machine goes on with nothing to run")
	}
	b, err := os.ReadFile(m.Ref().Console)
	if err != nil && !errors.Is(err, io.EOF) || !strings.Contains(string(b), "banger: boot failed: overlay: mount ext4") {
		t.Errorf("%v; the console ends with %q", err, b[max(0, len(b)-500):])
	}
}
