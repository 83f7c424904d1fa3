package userspace_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/network/networktest"
	"github.com/banger-dev/banger/internal/network/userspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	b, err := userspace.New(userspace.Config{})
	if err != nil {
		t.Fatal(err)
	}
	networktest.Backend(t, b)
	if _, err := userspace.New(userspace.Config{LAN: "maybe"}); err == nil {
		t.Error(`lan "maybe" was taken`)
	}
	link, _ := b.Attach(context.Background(), "x")
	if link.Stack.LAN != network.LANDeny {
		t.Errorf("lan is %q unless asked for, want deny", link.Stack.LAN)
	}
}

// rig is a guest, a stack and a world of stand-ins: what the policy lets
// through is dialled on loopback by the table, and written down.
type rig struct {
	guest *networktest.Guest
	stack *userspace.Stack
	mu    sync.Mutex
	world map[netip.AddrPort]string
	asked []string
}

func newRig(t testing.TB, resolvers ...netip.AddrPort) *rig {
	t.Helper()
	r := &rig{world: map[netip.AddrPort]string{}}
	near, far := networktest.Socketpair(t)
	host, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	ctx, cancel := context.WithCancel(context.Background())
	r.stack, err = userspace.Start(ctx, host, userspace.Options{
		Policy: userspace.Policy{Host: fakeHost()},
		Dial:   r.dial,
		Resolvers: func() ([]netip.AddrPort, error) {
			if len(resolvers) == 0 {
				return nil, errors.New("no resolvers here")
			}
			return resolvers, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.stack.Run() }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("stack ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("stack does not end")
		}
	})
	b, _ := userspace.New(userspace.Config{})
	link, _ := b.Attach(ctx, "vm")
	r.guest = networktest.NewGuest(t, near, link)
	return r
}

func (r *rig) dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	r.mu.Lock()
	r.asked = append(r.asked, network+" "+dst.String())
	to, ok := r.world[dst]
	r.mu.Unlock()
	if !ok {
		return nil, errors.New("no such stand-in")
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

func (r *rig) dialled() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.asked...)
}

// serve answers connections on loopback and stands in for dst.
func (r *rig) serve(t testing.TB, dst string, handle func(net.Conn)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
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
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.world[netip.MustParseAddrPort(dst)] = ln.Addr().String()
}

func echo(c net.Conn) {
	io.Copy(c, c)
	c.(*net.TCPConn).CloseWrite()
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) mustDial(t testing.TB, network, dst string) net.Conn {
	t.Helper()
	c, err := r.guest.Dial(within(t, 10*time.Second), network, netip.MustParseAddrPort(dst))
	if err != nil {
		t.Fatalf("dial %s %s: %v", network, dst, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestTCPBothWaysWithHalfClose(t *testing.T) {
	r := newRig(t)
	for _, dst := range []string{"203.0.113.80:80", "[2001:db8::80]:80"} {
		r.serve(t, dst, echo)
		c := r.mustDial(t, "tcp", dst)
		data := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			c.Write(data)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		h := sha256.New()
		n, err := io.Copy(h, c)
		if err != nil || n != int64(len(data)) {
			t.Fatalf("%s: %d bytes back, %v", dst, n, err)
		}
		if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("%s: bytes changed on the way", dst)
		}
	}
	if n := r.stack.Counters(); n.TCPTotal != 2 || n.BytesIn != 16<<20 || n.BytesOut != 16<<20 {
		t.Errorf("counters: %+v", n)
	}
}

// Nothing forbidden is ever dialled, and the guest is told at once.
func TestForbiddenIsRefusedAndNeverDialled(t *testing.T) {
	r := newRig(t)
	forbidden := []string{
		"10.0.2.2:80", "10.0.2.3:80", "169.254.169.254:80", "192.168.7.20:22",
		"203.0.113.9:22", "192.168.1.1:80", "10.255.255.53:53", "100.64.0.1:80", "198.51.100.200:80",
		"[64:ff9b::7f00:1]:80", "[64:ff9b::a9fe:a9fe]:80", "[2001:db8::9]:22",
		"[fd00:ec2::254]:80", "[fd62:616e:6765:72::2]:80", "[fd12::1]:80", "[2002:7f00:1::1]:80",
	}
	start := time.Now()
	for _, dst := range forbidden {
		c, err := r.guest.Dial(within(t, 5*time.Second), "tcp", netip.MustParseAddrPort(dst))
		if err == nil {
			c.Close()
			t.Errorf("%s: connected", dst)
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("refusals took %v", took)
	}
	if got := r.dialled(); len(got) != 0 {
		t.Errorf("dialled %v", got)
	}
	list := r.stack.Refusals()
	if len(list) != len(forbidden) || list[0].Reason == "" {
		t.Errorf("refusals kept: %v", list)
	}
}

func TestDeadDestinationIsRefused(t *testing.T) {
	r := newRig(t)
	start := time.Now()
	if c, err := r.guest.Dial(within(t, 5*time.Second), "tcp", netip.MustParseAddrPort("203.0.113.99:81")); err == nil {
		c.Close()
		t.Fatal("connected to nobody")
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v to hear of it", took)
	}
	if n := r.stack.Counters(); n.DialFailed != 1 || n.Refused != 0 {
		t.Errorf("counters: %+v", n)
	}
}

func TestFiveHundredConnectionsAtOnce(t *testing.T) {
	r := newRig(t)
	r.serve(t, "203.0.113.80:80", echo)
	const many = 500
	var wg sync.WaitGroup
	errc := make(chan error, many)
	hold := make(chan struct{})
	for i := range many {
		wg.Go(func() {
			c, err := r.guest.Dial(within(t, 30*time.Second), "tcp", netip.MustParseAddrPort("203.0.113.80:80"))
			if err != nil {
				errc <- err
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(30 * time.Second))
			msg := binary.BigEndian.AppendUint32(nil, uint32(i))
			back := make([]byte, 4)
			_, err = c.Write(msg)
			if err == nil {
				_, err = io.ReadFull(c, back)
			}
			if err == nil && !bytes.Equal(msg, back) {
				err = errors.New("another connection's bytes")
			}
			errc <- err
			<-hold
		})
	}
	for range many {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	if n := r.stack.Counters(); n.TCPOpen != many {
		t.Errorf("%d open, want %d", n.TCPOpen, many)
	}
	close(hold)
	wg.Wait()
}

func TestUDP(t *testing.T) {
	r := newRig(t)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	r.world[netip.MustParseAddrPort("203.0.113.81:4000")] = pc.LocalAddr().String()
	c := r.mustDial(t, "udp", "203.0.113.81:4000")
	for _, size := range []int{1, 1400, 60000} {
		msg := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		back := make([]byte, 65535)
		n, err := c.Read(back)
		if err != nil || !bytes.Equal(back[:n], msg) {
			t.Fatalf("%d bytes came back for %d: %v", n, size, err)
		}
	}
	before := len(r.dialled())
	bad := r.mustDial(t, "udp", "169.254.169.254:53")
	bad.Write([]byte("x"))
	bad.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := bad.Read(make([]byte, 10)); err == nil {
		t.Error("an answer from the metadata address")
	}
	if n := len(r.dialled()); n != before {
		t.Errorf("the metadata address was dialled")
	}
	if n := r.stack.Counters(); n.UDPTotal != 1 || n.Refused != 1 {
		t.Errorf("counters: %+v", n)
	}
}

func TestPing(t *testing.T) {
	r := newRig(t)
	for dst, want := range map[string]bool{
		"10.0.2.2": true, "10.0.2.3": true, "fd62:616e:6765:72::2": true,
		"203.0.113.80": false, "2001:db8::80": false,
	} {
		wait := 5 * time.Second
		if !want {
			wait = 300 * time.Millisecond
		}
		got, err := r.guest.Ping(netip.MustParseAddr(dst), wait)
		if err != nil || got != want {
			t.Errorf("ping %s: %v, %v; want %v", dst, got, err, want)
		}
	}
}

// A guest that stops reading costs the stack nothing but its own traffic.
func TestGuestThatDoesNotRead(t *testing.T) {
	near, far := networktest.Socketpair(t)
	defer near.Close()
	host, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	s, err := userspace.Start(context.Background(), host, userspace.Options{Policy: userspace.Policy{Host: fakeHost()}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	// ARP requests whose answers nobody takes.
	arp := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x62, 0x67, 1, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x62, 0x67, 1, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
	}
	msg := append(binary.BigEndian.AppendUint32(nil, uint32(len(arp))), arp...)
	near.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for i := range 20000 {
		if _, err := near.Write(msg); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	s.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a stack whose guest does not read does not end")
	}
}

func TestNonsenseOnTheWireEndsIt(t *testing.T) {
	near, far := networktest.Socketpair(t)
	defer near.Close()
	host, _ := net.FileConn(far)
	far.Close()
	s, err := userspace.Start(context.Background(), host, userspace.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	near.Write([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no word about it")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
}
