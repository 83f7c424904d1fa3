package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/paths"
)

// bare starts machines with the driver alone: no daemon, no shim, no store.
type bare struct {
	dir     string // scratch, on the disk that the product uses
	bin     string
	agent   string
	driver  *qemu.Driver
	image   image.Image
	kernel  kernel.Kernel
	memory  int64
	diskLen int64
	maker   disk.Maker
	n       int
}

func newBare(ctx context.Context, dir, bin string, l paths.Layout, memory, diskLen int64) (*bare, error) {
	for _, d := range []string{dir, filepath.Join(dir, "floor")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	imgs, err := image.Open(l.Images())
	if err != nil {
		return nil, err
	}
	krns, err := kernel.Open(l.Kernels(), nil, nil)
	if err != nil {
		return nil, err
	}
	b := &bare{
		dir: dir, bin: bin, agent: filepath.Join(bin, "banger-vsock-agent"),
		driver: qemu.New(qemu.Options{Launcher: []string{filepath.Join(bin, "bangerd"), "launch"}}),
		memory: memory, diskLen: diskLen, maker: disk.Maker{Cache: filepath.Join(dir, "blank")},
	}
	if b.image, err = imgs.Get("debian-bookworm"); err != nil {
		return nil, err
	}
	if b.kernel, err = krns.Get(b.image.Manifest.Kernel); err != nil {
		return nil, err
	}
	_, err = b.driver.Probe(ctx)
	return b, err
}

// machine is a bare machine with what belongs to it.
type machine struct {
	hypervisor.Machine
	dir string
	nic *os.File
}

// end kills the machine and removes its files.
func (m *machine) end(ctx context.Context) error {
	err := m.Kill(ctx)
	m.Close()
	m.nic.Close()
	return errors.Join(err, os.RemoveAll(m.dir))
}

// spec is the product's machine, with the NIC's other end read by nobody.
func (b *bare) spec(ctx context.Context, initrd string) (hypervisor.Spec, *os.File, error) {
	b.n++
	id := fmt.Sprintf("bench-%d", b.n)
	dir := filepath.Join(b.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return hypervisor.Spec{}, nil, err
	}
	system, work := filepath.Join(dir, paths.SystemDisk), filepath.Join(dir, paths.WorkDisk)
	for path, label := range map[string]string{system: "system", work: "work"} {
		if err := b.maker.Make(ctx, path, b.diskLen, label); err != nil && !errors.Is(err, fs.ErrExist) {
			return hypervisor.Spec{}, nil, err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return hypervisor.Spec{}, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "nic"), os.NewFile(uintptr(pair[1]), "nic")
	return hypervisor.Spec{
		ID: id, Dir: dir, SockDir: dir, CPUs: 1, Memory: b.memory,
		Kernel: b.kernel.VMLinux, KernelHZ: b.kernel.Manifest.HZ, Initrd: initrd,
		Cmdline: "quiet loglevel=4 cryptomgr.notests tsc=reliable",
		Disks: []hypervisor.Disk{
			{ID: "image", Path: b.image.Rootfs, ReadOnly: true},
			{ID: "system", Path: system}, {ID: "work", Path: work},
			{ID: "modules", Path: b.kernel.Modules, ReadOnly: true},
		},
		Nets:    []hypervisor.Netdev{{ID: "net0", MAC: "52:54:00:00:00:01", MTU: 65520, File: theirs}},
		Console: hypervisor.Console{Log: filepath.Join(dir, paths.ConsoleLog)},
	}, ours, nil
}

// cold boots to the agent's first answer; the clock covers the hypervisor alone.
func (b *bare) cold(ctx context.Context) (time.Duration, error) {
	base, err := initramfs.Build(ctx, b.kernel, b.agent, b.dir)
	if err != nil {
		return 0, err
	}
	token := make([]byte, 32)
	seed, err := json.Marshal(boot.Seed{Token: token, Disks: []string{"image", "system", "work", "modules"}})
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(b.dir, fmt.Sprintf("initrd-%d", b.n))
	if err := initramfs.WithSeed(ctx, base, initrd, seed); err != nil {
		return 0, err
	}
	defer os.Remove(initrd)
	spec, nic, err := b.spec(ctx, initrd)
	if err != nil {
		return 0, err
	}
	return b.answer(ctx, spec, nic, token)
}

// answer starts a machine and stops the clock at the agent's hello.
func (b *bare) answer(ctx context.Context, spec hypervisor.Spec, nic *os.File, token []byte) (_ time.Duration, err error) {
	start := time.Now()
	m, err := b.driver.Start(ctx, spec)
	if err != nil {
		return 0, err
	}
	bm := &machine{Machine: m, dir: spec.Dir, nic: nic}
	defer func() { err = errors.Join(err, bm.end(ctx)) }()
	c, err := guest.Dial(ctx, m.Ref().Endpoint, token, guest.Options{})
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, c.Close()
}

// template is what of a template's directory the floor needs.
type template struct {
	dir     string
	token   []byte
	cmdline string
	memory  int64
}

// findTemplate reads the newest template of a data directory.
func findTemplate(dir string) (template, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*", "template.json"))
	if err != nil || len(names) == 0 {
		return template{}, errors.Join(err, fmt.Errorf("no template beneath %s", dir))
	}
	var newest string
	var at time.Time
	for _, n := range names {
		if st, err := os.Stat(n); err == nil && st.ModTime().After(at) {
			newest, at = n, st.ModTime()
		}
	}
	text, err := os.ReadFile(newest)
	if err != nil {
		return template{}, err
	}
	var t struct {
		Cmdline string `json:"cmdline"`
		Memory  int64  `json:"memory"`
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return template{}, err
	}
	d := filepath.Dir(newest)
	text, err = os.ReadFile(filepath.Join(d, "token"))
	if err != nil {
		return template{}, err
	}
	token, err := hex.DecodeString(strings.TrimSpace(string(text)))
	return template{dir: d, token: token, cmdline: t.Cmdline, memory: t.Memory}, err
}

// clone restores a template to the agent's first answer; disks are copied
// before the clock starts.
func (b *bare) clone(ctx context.Context, t template) (time.Duration, error) {
	spec, nic, err := b.spec(ctx, filepath.Join(t.dir, "initrd"))
	if err != nil {
		return 0, err
	}
	for _, name := range []string{paths.SystemDisk, paths.WorkDisk} {
		dst := filepath.Join(spec.Dir, name)
		if err := os.Remove(dst); err != nil {
			return 0, err
		}
		if err := disk.Clone(ctx, filepath.Join(t.dir, name), dst); err != nil {
			return 0, err
		}
	}
	spec.Cmdline, spec.Memory = t.cmdline, t.memory
	spec.RAM = hypervisor.RAMFile{Path: filepath.Join(t.dir, paths.RAMFile)}
	spec.Restore = &hypervisor.Restore{Devices: filepath.Join(t.dir, paths.Devices)}
	return b.answer(ctx, spec, nic, t.token)
}

// floorGuest is a machine with the least guest, up and connected.
type floorGuest struct {
	*machine
	conn net.Conn
}

func (b *bare) floorGuest(ctx context.Context, init string) (*floorGuest, error) {
	initrd, err := initramfs.Build(ctx, b.kernel, init, filepath.Join(b.dir, "floor"))
	if err != nil {
		return nil, err
	}
	spec, nic, err := b.spec(ctx, initrd)
	if err != nil {
		return nil, err
	}
	m, err := b.driver.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	g := &floorGuest{machine: &machine{Machine: m, dir: spec.Dir, nic: nic}}
	if g.conn, err = net.Dial("unix", m.Ref().Endpoint.Path); err == nil {
		_ = g.conn.SetDeadline(time.Now().Add(2 * time.Minute))
		_, err = g.exec()
	}
	if err != nil {
		text, _ := os.ReadFile(spec.Console.Log)
		return nil, errors.Join(fmt.Errorf("the floor's guest: %w; its console: %s", err, strings.TrimSpace(string(text))), g.end(ctx))
	}
	return g, nil
}

func (g *floorGuest) end(ctx context.Context) error {
	if g.conn != nil {
		g.conn.Close()
	}
	return g.machine.end(ctx)
}

// exec has the guest fork and exec once.
func (g *floorGuest) exec() (time.Duration, error) {
	start := time.Now()
	if _, err := g.conn.Write([]byte("x")); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(g.conn, make([]byte, 1))
	return time.Since(start), err
}

// move sends bytes to the guest ('r') or takes them from it ('w').
func (g *floorGuest) move(verb byte, kib int) (time.Duration, error) {
	start := time.Now()
	if err := g.conn.SetDeadline(start.Add(2 * time.Minute)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(g.conn, "%c%08d", verb, kib); err != nil {
		return 0, err
	}
	n := int64(kib) << 10
	var err error
	if verb == 'r' {
		_, err = io.CopyN(g.conn, zeros{}, n)
	} else {
		_, err = io.CopyN(io.Discard, g.conn, n)
	}
	if err != nil {
		return 0, err
	}
	_, err = io.ReadFull(g.conn, make([]byte, 1))
	return time.Since(start), err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
