//go:build e2e

package userspace_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/banger-dev/banger/internal/network/networktest"
	"github.com/banger-dev/banger/internal/network/userspace"
)

// What a guest may reach, tried for real: a "host" and a "world" in two
// network namespaces of the test's own, joined by a veth pair, both listening
// on everything and telling of every connection. The guest's stack has the
// real policy, the real dialler and the real routing tables.
const (
	roleEnv   = "BANGER_REACH_ROLE"
	reachPort = 7777
)

// hostAddr and worldAddrs are put on the two ends.
var (
	hostAddr   = []string{"198.51.100.1/24", "192.168.77.1/24", "2001:db8:1::1/64", "fd77::1/64"}
	worldAddrs = []string{
		"198.51.100.2/24", "192.168.77.2/24", "2001:db8:1::2/64", "fd77::2/64",
		"203.0.113.50/32", "8.8.8.8/32", "10.9.8.7/32", "172.20.0.5/32", "100.64.3.4/32", "198.18.0.9/32",
		"169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "192.88.99.1/32",
		"10.0.2.2/32", "10.0.2.99/32", "2606:4700::1111/128", "fd00:ec2::254/128", "fec0::1/128", "2002:c633:6401::1/128",
		"64:ff9b::7f00:1/128", "64:ff9b::a9fe:a9fe/128", "64:ff9b::808:808/128", "64:ff9b::a09:807/128", "4000::1/128",
	}
)

func TestReach(t *testing.T) {
	switch os.Getenv(roleEnv) {
	case "world":
		worldMain(t)
		return
	case "host":
		reach(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Fatal("the e2e tests run as root: sudo make test")
	}
	cmd := respawn("host")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// respawn is this test in a network namespace of its own.
func respawn(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestReach$", "-test.v", "-test.timeout=100s")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

func addresses(t *testing.T, dev string, addrs []string) {
	t.Helper()
	for _, a := range addrs {
		args := []string{"addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		ip(t, args...)
	}
}

// listenAll tells of everything that arrives on the port: TCP at any address,
// UDP at those given, each with a socket of its own so that the answer comes
// from where it was asked.
func listenAll(t *testing.T, tell func(string), udp ...string) {
	t.Helper()
	ln, err := net.Listen("tcp", ":"+fmt.Sprint(reachPort))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			tell("tcp " + c.LocalAddr().String())
			c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	for _, a := range udp {
		host, _, _ := strings.Cut(a, "/")
		pc, err := net.ListenPacket("udp", net.JoinHostPort(host, fmt.Sprint(reachPort)))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			buf := make([]byte, 100)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				tell("udp " + string(buf[:n]))
				pc.WriteTo(buf[:n], from)
			}
		})
		t.Cleanup(func() { pc.Close() })
	}
}

// worldMain is the other side of the veth: it sets its end up when told, says
// what arrives, and ends with its input.
func worldMain(t *testing.T) {
	in := bufio.NewScanner(os.Stdin)
	in.Scan() // the veth is there
	ip(t, "link", "set", "lo", "up")
	ip(t, "link", "set", "w1", "up")
	addresses(t, "w1", worldAddrs)
	ip(t, "route", "add", "default", "via", "198.51.100.1")
	ip(t, "-6", "route", "add", "default", "via", "2001:db8:1::1")
	var mu sync.Mutex
	listenAll(t, func(s string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("HIT", s)
	}, worldAddrs...)
	fmt.Println("READY")
	in.Scan()
}

// hits collects what the world and the host saw.
type hits struct {
	mu  sync.Mutex
	all []string
}

func (h *hits) add(s string) { h.mu.Lock(); defer h.mu.Unlock(); h.all = append(h.all, s) }

func (h *hits) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.all
	h.all = nil
	return got
}

func startWorld(t *testing.T, h *hits) {
	t.Helper()
	cmd := respawn("world")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	ip(t, "link", "set", "lo", "up")
	ip(t, "link", "add", "w0", "type", "veth", "peer", "name", "w1", "netns", fmt.Sprint(cmd.Process.Pid))
	ip(t, "link", "set", "w0", "up")
	addresses(t, "w0", hostAddr)
	ip(t, "route", "add", "default", "via", "198.51.100.2")
	ip(t, "-6", "route", "add", "default", "via", "2001:db8:1::2")
	ip(t, "route", "add", "local", "198.51.101.0/24", "dev", "lo") // no interface has it, the host answers
	fmt.Fprintln(stdin, "go")
	sc := bufio.NewScanner(stdout)
	ready := make(chan struct{})
	go func() {
		for sc.Scan() {
			if sc.Text() == "READY" {
				close(ready)
			} else if s, ok := strings.CutPrefix(sc.Text(), "HIT "); ok {
				h.add("world " + s)
			}
		}
	}()
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("the world does not come up")
	}
}

func reach(t *testing.T) {
	var h hits
	startWorld(t, &h)
	listenAll(t, func(s string) { h.add("host " + s) }, "")
	loopbackResolver(t)
	const open, lan, shut = "open", "lan", "shut"
	table := []struct{ addr, want string }{
		{"203.0.113.50", open}, {"8.8.8.8", open}, {"198.51.100.2", open},
		{"2606:4700::1111", open}, {"2001:db8:1::2", open}, {"64:ff9b::808:808", open},
		{"192.168.77.2", lan}, {"10.9.8.7", lan}, {"172.20.0.5", lan}, {"100.64.3.4", lan}, {"198.18.0.9", lan},
		{"fd77::2", lan}, {"64:ff9b::a09:807", lan},
		{"10.0.2.2", shut}, {"10.0.2.3", shut}, {"10.0.2.99", shut}, {"198.51.100.1", shut}, {"192.168.77.1", shut},
		{"198.51.101.7", shut}, {"198.51.100.255", shut}, {"2001:db8:1::1", shut}, {"fd77::1", shut},
		{"169.254.169.254", shut}, {"100.100.100.200", shut}, {"168.63.129.16", shut}, {"192.0.0.192", shut},
		{"192.88.99.1", shut}, {"fd00:ec2::254", shut}, {"fec0::1", shut}, {"2002:c633:6401::1", shut},
		{"64:ff9b::7f00:1", shut}, {"64:ff9b::a9fe:a9fe", shut}, {"4000::1", shut}, {"fd62:616e:6765:72::2", shut},
	}
	raw := []string{ // what only a hand-made packet asks for
		"127.0.0.1", "127.0.0.53", "0.0.0.0", "0.0.0.1", "255.255.255.255", "224.0.0.1", "240.0.0.1", "10.0.2.255",
		"::1", "::ffff:127.0.0.1", "::ffff:198.51.100.1", "::127.0.0.1", "ff02::1", "fe80::1", "::",
	}
	for _, allowLAN := range []bool{false, true} {
		r := newReachRig(t, allowLAN)
		h.take()
		for _, c := range table {
			want := c.want == open || c.want == lan && allowLAN
			dst := netip.AddrPortFrom(netip.MustParseAddr(c.addr), reachPort)
			checkTCP(t, r, dst, want, allowLAN)
			checkUDP(t, r, dst, want, allowLAN)
			for _, got := range h.take() {
				if !want || strings.HasPrefix(got, "host ") {
					t.Errorf("lan %v: %s arrived as %q", allowLAN, c.addr, got)
				}
			}
		}
		for _, a := range raw {
			if err := r.guest.SYN(netip.AddrPortFrom(netip.MustParseAddr(a), reachPort)); err != nil {
				t.Fatal(err)
			}
		}
		dnsWorks(t, r)
		if got := h.take(); len(got) != 0 {
			t.Errorf("lan %v: hand-made packets arrived: %v", allowLAN, got)
		}
		if n := r.stack.Counters(); n.Refused == 0 {
			t.Errorf("counters: %+v", n)
		}
	}
}

func newReachRig(t *testing.T, allowLAN bool) *rig {
	t.Helper()
	near, far := networktest.Socketpair(t)
	host, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	s, err := userspace.Start(context.Background(), host, userspace.Options{
		Policy: userspace.Policy{LAN: allowLAN},
		Resolvers: func() ([]netip.AddrPort, error) {
			return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	t.Cleanup(func() { s.Close(); <-ended })
	b, _ := userspace.New(userspace.Config{})
	link, _ := b.Attach(context.Background(), "vm")
	return &rig{guest: networktest.NewGuest(t, near, link), stack: s}
}

func checkTCP(t *testing.T, r *rig, dst netip.AddrPort, want, allowLAN bool) {
	t.Helper()
	start := time.Now()
	c, err := r.guest.Dial(within(t, 4*time.Second), "tcp", dst)
	if err == nil {
		c.Close()
	}
	if (err == nil) != want {
		t.Errorf("lan %v: tcp %v: %v, want reached %v", allowLAN, dst, err, want)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("tcp %v took %v", dst, took)
	}
}

func checkUDP(t *testing.T, r *rig, dst netip.AddrPort, want, allowLAN bool) {
	t.Helper()
	c, err := r.guest.Dial(within(t, 4*time.Second), "udp", dst)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte(dst.String()))
	wait := 2 * time.Second
	if !want {
		wait = 30 * time.Millisecond
	}
	c.SetReadDeadline(time.Now().Add(wait))
	if _, err := c.Read(make([]byte, 100)); (err == nil) != want {
		t.Errorf("lan %v: udp %v: %v, want an answer %v", allowLAN, dst, err, want)
	}
}

// loopbackResolver is the host's own resolver, where systemd puts it: it
// serves the guest's questions although the guest cannot dial it.
func loopbackResolver(t *testing.T) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range answerAll(buf[:n], false) {
				pc.WriteTo(a, from)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
}

func dnsWorks(t *testing.T, r *rig) {
	t.Helper()
	for _, server := range []string{"10.0.2.3:53", "[fd62:616e:6765:72::3]:53"} {
		c := r.mustDial(t, "udp", server)
		c.Write(question(t, "reach.example.", dnsmessage.TypeA, true))
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 2000)
		n, err := c.Read(buf)
		if err != nil {
			t.Errorf("dns at %s: %v", server, err)
			continue
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:n]); err != nil || len(m.Answers) != 1 {
			t.Errorf("dns at %s: %+v, %v", server, m, err)
		}
	}
}
