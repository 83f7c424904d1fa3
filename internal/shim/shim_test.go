package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/network/networktest"
	"github.com/banger-dev/banger/internal/network/userspace"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/shim"
)

// The test binary is its own bangerd.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "shim" {
		os.Exit(shim.Main())
	}
	os.Exit(m.Run())
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func launcher(t testing.TB) shim.Launcher {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return shim.Launcher{Program: self}
}

func config(t testing.TB) (shim.Config, string) {
	t.Helper()
	// Short, for a socket's path has 107 bytes.
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return shim.Config{
		VM:            "vm-1",
		ConsoleSocket: filepath.Join(dir, "console.sock"),
		ConsoleLog:    filepath.Join(dir, "console.log"),
		Control:       filepath.Join(dir, "shim.sock"),
	}, dir
}

func start(t testing.TB, cfg shim.Config, dir string, nic *os.File) shim.Ref {
	t.Helper()
	ref, err := launcher(t).Start(within(t, 20*time.Second), cfg, dir, nic, nil)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "shim.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() { shim.Stop(within(t, 10*time.Second), ref) })
	return ref
}

func userLink(t testing.TB) network.Link {
	t.Helper()
	b, err := userspace.New(userspace.Config{})
	if err != nil {
		t.Fatal(err)
	}
	link, err := b.Attach(context.Background(), "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// ended waits for the shim's end.
func ended(t testing.TB, ref shim.Ref, d time.Duration) {
	t.Helper()
	p, err := proc.Open(ref.Process)
	if errors.Is(err, proc.ErrGone) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Wait(within(t, d)); err != nil {
		t.Error("the shim lives on")
	}
}

func TestLifeOfAShim(t *testing.T) {
	cfg, dir := config(t)
	old := unix.Umask(0) // whatever the daemon's is
	defer unix.Umask(old)
	ref := start(t, cfg, dir, nil)
	for _, f := range []string{"console.sock", "shim.sock", "console.log", "console.log.1", "shim.log"} {
		st, err := os.Lstat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want 0600", f, st.Mode(), err)
		}
	}
	found, err := proc.Find(within(t, 5*time.Second), dir)
	if err != nil || len(found) != 1 || found[0].Identity != ref.Process || found[0].VM != "vm-1" {
		t.Errorf("found by its mark: %+v, %v", found, err)
	}
	r, err := shim.Status(within(t, 5*time.Second), ref)
	if err != nil || r.VM != "vm-1" || r.Console.Connected || r.Net != nil || !slices.Contains(r.Confined, "seccomp") {
		t.Errorf("report: %+v, %v", r, err)
	}
	p, err := shim.Adopt(within(t, 5*time.Second), ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := shim.Stop(within(t, 10*time.Second), ref); err != nil {
		t.Error(err)
	}
	if err := p.Wait(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	p.Close()
	if err := shim.Stop(within(t, 10*time.Second), ref); err != nil {
		t.Errorf("stopping again: %v", err)
	}
	if _, err := shim.Adopt(within(t, 5*time.Second), ref); !errors.Is(err, proc.ErrGone) {
		t.Errorf("adopting one that is gone: %v", err)
	}
	if _, err := shim.Status(within(t, 5*time.Second), ref); !errs.Is(err, errs.Unavailable) {
		t.Errorf("asking one that is gone: %v", err)
	}
}

func TestStartSaysWhatWentWrong(t *testing.T) {
	cfg, dir := config(t)
	cfg.ConsoleSocket = filepath.Join(dir, "no", "such", "dir", "console.sock")
	_, err := launcher(t).Start(within(t, 10*time.Second), cfg, dir, nil, nil)
	if errs.CodeOf(err) != "shim_start" || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
	cfg, dir = config(t)
	link := userLink(t)
	cfg.Net = &link
	if _, err := launcher(t).Start(within(t, 10*time.Second), cfg, dir, nil, nil); err == nil {
		t.Error("a network without a NIC started")
	}
	// A starter that gives up leaves nothing behind.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	cfg, dir = config(t)
	if _, err := launcher(t).Start(ctx, cfg, dir, nil, nil); !errs.Is(err, errs.Unavailable) {
		t.Errorf("cancelled: %v", err)
	}
	if found, err := proc.Find(within(t, 5*time.Second), dir); err != nil || len(found) != 0 {
		t.Errorf("left behind: %v, %v", found, err)
	}
}

// A flood on the console (trust A7) neither blocks its writer nor fills the
// disk nor the memory; the last of it is kept.
func TestConsoleFlood(t *testing.T) {
	cfg, dir := config(t)
	cfg.ConsoleCap = 1 << 20
	ref := start(t, cfg, dir, nil)
	c, err := net.Dial("unix", cfg.ConsoleSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var before, most int64
	total := 64 << 20
	if testing.Short() {
		total = 8 << 20
	}
	line := []byte(strings.Repeat("x", 63) + "\n")
	chunk := bytes.Repeat(line, 1024)
	c.SetWriteDeadline(time.Now().Add(60 * time.Second))
	for i := range total / len(chunk) {
		if i == 4<<20/len(chunk) {
			before = rss(t, ref.Process.PID) // it has warmed up
		}
		if _, err := c.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if before > 0 {
			most = max(most, rss(t, ref.Process.PID))
		}
		if size := sizes(t, cfg.ConsoleLog); size > cfg.ConsoleCap {
			t.Fatalf("the log holds %d bytes of at most %d", size, cfg.ConsoleCap)
		}
	}
	fmt.Fprintln(c, "the last line")
	c.Close()
	ended(t, ref, 20*time.Second) // the console was its only peer
	tail, err := os.ReadFile(cfg.ConsoleLog)
	if err != nil || !bytes.HasSuffix(tail, []byte("the last line\n")) {
		t.Errorf("the end is missing: %d bytes, %v", len(tail), err)
	}
	if grown := most - before; grown > 16<<20 { // the race detector takes half of it
		t.Errorf("the shim grew by %d bytes", grown)
	}
}

func sizes(t *testing.T, log string) int64 {
	t.Helper()
	var n int64
	for _, f := range []string{log, log + ".1"} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	return n
}

func rss(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(raw), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// The network in the shim: what the host itself serves stays out of reach.
func TestNetworkInTheShim(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reached := make(chan struct{}, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Close()
			reached <- struct{}{}
		}
	}()
	port := ln.Addr().(*net.TCPAddr).Port
	cfg, dir := config(t)
	link := userLink(t)
	cfg.Net = &link
	near, far := networktest.Socketpair(t)
	ref := start(t, cfg, dir, far)
	far.Close()
	g := networktest.NewGuest(t, near, link)
	for _, addr := range []string{"10.0.2.2", "169.254.169.254", "64:ff9b::7f00:1"} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
		if c, err := g.Dial(within(t, 5*time.Second), "tcp", dst); err == nil {
			c.Close()
			t.Errorf("%s: connected", addr)
		}
	}
	if ok, err := g.Ping(netip.MustParseAddr("10.0.2.2"), 5*time.Second); err != nil || !ok {
		t.Errorf("gateway does not answer: %v", err)
	}
	r, err := shim.Status(within(t, 5*time.Second), ref)
	if err != nil || r.Net == nil || !r.Net.Up || r.Net.Refused != 3 || len(r.Net.Refusals) != 3 {
		t.Errorf("report: %+v, %v", r.Net, err)
	}
	select {
	case <-reached:
		t.Error("the host's loopback was reached")
	default:
	}
	// The hypervisor's end: the wire closes, and the shim goes.
	near.Close()
	ended(t, ref, 10*time.Second)
}

// A console that was taken keeps the shim after its network ended, and the
// other way round.
func TestLastPeerEndsIt(t *testing.T) {
	cfg, dir := config(t)
	link := userLink(t)
	cfg.Net = &link
	near, far := networktest.Socketpair(t)
	ref := start(t, cfg, dir, far)
	far.Close()
	c, err := net.Dial("unix", cfg.ConsoleSocket)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(c, "hello")
	awaitConsole(t, ref, 6)
	near.Close()
	deadline := time.Now().Add(5 * time.Second)
	for {
		r, err := shim.Status(within(t, 5*time.Second), ref)
		if err != nil {
			t.Fatalf("gone while the console stands: %v", err)
		}
		if !r.Net.Up {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the network's end is not noticed")
		}
	}
	c.Close()
	ended(t, ref, 10*time.Second)
	if b, err := os.ReadFile(cfg.ConsoleLog); err != nil || string(b) != "hello\n" {
		t.Errorf("console: %q, %v", b, err)
	}
}

func awaitConsole(t *testing.T, ref shim.Ref, bytes uint64) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r, err := shim.Status(within(t, 5*time.Second), ref)
		if err != nil {
			t.Fatal(err)
		}
		if r.Console.Bytes >= bytes {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("console: %+v", r.Console)
		}
	}
}

func TestControlTakesNoNonsense(t *testing.T) {
	cfg, dir := config(t)
	ref := start(t, cfg, dir, nil)
	for _, line := range []string{"{\"op\":\"reboot\"}\n", "not json\n", "{}\n", "\n"} {
		c, err := net.Dial("unix", cfg.Control)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, line)
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil || !strings.Contains(string(b[:n]), `"error"`) {
			t.Errorf("%q: %q, %v", line, b[:n], err)
		}
		c.Close()
	}
	c, err := net.Dial("unix", cfg.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, strings.Repeat("x", 8<<10)) // no end of line; a reset is an answer too
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("an endless line was answered with %d bytes", n)
	}
	if _, err := shim.Status(within(t, 5*time.Second), ref); err != nil {
		t.Error(err)
	}
}
