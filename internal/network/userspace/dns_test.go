package userspace_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/banger-dev/banger/internal/network/userspace"
)

const resolver = "10.0.2.3:53"

func question(t testing.TB, name string, typ dnsmessage.Type, edns bool) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	b.EnableCompression()
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET})
	if edns {
		var rh dnsmessage.ResourceHeader
		rh.SetEDNS0(4096, dnsmessage.RCodeSuccess, true)
		b.StartAdditionals()
		b.OPTResource(rh, dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("a cookie of the guest")}}})
	}
	msg, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// answerAll answers every question with one address, and first with an answer
// that belongs to nobody where lie is set.
func answerAll(raw []byte, lie bool) [][]byte {
	var m dnsmessage.Message
	if m.Unpack(raw) != nil || len(m.Questions) != 1 {
		return nil
	}
	a := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true},
		Questions: m.Questions,
		Answers: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{203, 0, 113, 80}},
		}},
	}
	good, _ := a.Pack()
	if !lie {
		return [][]byte{good}
	}
	a.ID++
	bad, _ := a.Pack()
	return [][]byte{bad, []byte("x"), good}
}

// fakeResolver answers on UDP and TCP of one loopback port and gives what it
// was sent.
func fakeResolver(t *testing.T, lie bool) (netip.AddrPort, <-chan []byte) {
	t.Helper()
	pc, ln := bothOnOnePort(t)
	seen := make(chan []byte, 64)
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			seen <- append([]byte(nil), buf[:n]...)
			for _, a := range answerAll(buf[:n], lie) {
				pc.WriteTo(a, from)
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			q := readStream(c)
			seen <- q
			for _, a := range answerAll(q, false) {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { pc.Close(); ln.Close(); <-done; <-done })
	return netip.MustParseAddrPort(pc.LocalAddr().String()), seen
}

// bothOnOnePort finds a port that is free for UDP and TCP.
func bothOnOnePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		pc.Close()
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

func readStream(r io.Reader) []byte {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil
	}
	return b
}

func exchange(t *testing.T, r *rig, network string, q []byte) dnsmessage.Message {
	t.Helper()
	c := r.mustDial(t, network, resolver)
	var raw []byte
	if network == "tcp" {
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
		raw = readStream(c)
	} else {
		c.Write(q)
		buf := make([]byte, 65535)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		raw = buf[:n]
	}
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		t.Fatalf("%x: %v", raw, err)
	}
	return m
}

func TestDNS(t *testing.T) {
	server, seen := fakeResolver(t, true)
	r := newRig(t, server)
	for _, network := range []string{"udp", "tcp"} {
		m := exchange(t, r, network, question(t, "Example.com.", dnsmessage.TypeA, true))
		if m.ID != 4711 || len(m.Answers) != 1 || m.Questions[0].Name.String() != "Example.com." {
			t.Errorf("%s: %+v", network, m)
		}
		q := <-seen
		if bytes.Contains(q, []byte("cookie")) {
			t.Errorf("%s: the guest's own option reached the host's resolver", network)
		}
		if binary.BigEndian.Uint16(q) == 4711 {
			t.Errorf("%s: the guest chose the id", network)
		}
	}
	if n := r.stack.Counters(); n.DNSTotal != 2 || len(r.dialled()) != 0 {
		t.Errorf("counters %+v, dialled %v", n, r.dialled())
	}
}

func TestDNSNextResolverAndNone(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := netip.MustParseAddrPort(dead.LocalAddr().String())
	dead.Close() // answers "port unreachable" at once
	server, _ := fakeResolver(t, false)
	r := newRig(t, gone, server)
	if m := exchange(t, r, "udp", question(t, "a.example.", dnsmessage.TypeA, false)); len(m.Answers) != 1 {
		t.Errorf("the second resolver was not asked: %+v", m)
	}
	none := newRig(t)
	if m := exchange(t, none, "udp", question(t, "a.example.", dnsmessage.TypeA, false)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("without resolvers: %v", m.RCode)
	}
}

func TestDNSRefusesWhatIsNoLookUp(t *testing.T) {
	server, seen := fakeResolver(t, false)
	r := newRig(t, server)
	two := question(t, "a.example.", dnsmessage.TypeA, false)
	two[5] = 2
	update := question(t, "a.example.", dnsmessage.TypeA, false)
	update[2] |= 5 << 3
	for name, c := range map[string]struct {
		q    []byte
		want dnsmessage.RCode
	}{
		"zone transfer": {question(t, "example.", 252, false), dnsmessage.RCodeRefused},
		"any":           {question(t, "example.", 255, false), dnsmessage.RCodeRefused},
		"two questions": {two, dnsmessage.RCodeFormatError},
		"update":        {update, dnsmessage.RCodeNotImplemented},
	} {
		if m := exchange(t, r, "udp", c.q); m.RCode != c.want || m.ID != 4711 {
			t.Errorf("%s: %v, want %v", name, m.RCode, c.want)
		}
	}
	if len(seen) != 0 {
		t.Error("one of them reached the host's resolver")
	}
}

func TestDNSOverTCPManyQuestionsOneConnection(t *testing.T) {
	server, _ := fakeResolver(t, false)
	r := newRig(t, server)
	c := r.mustDial(t, "tcp", resolver)
	for range 3 {
		q := question(t, "b.example.", dnsmessage.TypeA, false)
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
		if a := readStream(c); len(a) < 12 {
			t.Fatalf("answer %x", a)
		}
	}
	// A length that promises more than a question has ends the connection.
	c.Write([]byte{0xff, 0xff})
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it goes on")
	}
}

func TestResolvConf(t *testing.T) {
	got := userspace.ParseResolvConf(strings.NewReader("# nameserver 9.9.9.9\nsearch a b\nnameserver 127.0.0.53\n" +
		"nameserver nonsense\n nameserver fe80::1%eth0 \nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"))
	want := []string{"127.0.0.53:53", "[fe80::1%eth0]:53", "10.0.0.1:53"}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i].String() != want[i] {
			t.Errorf("%d: %v, want %s", i, got[i], want[i])
		}
	}
	if got := userspace.ParseResolvConf(strings.NewReader("options edns0\n")); len(got) != 1 || got[0].String() != "127.0.0.1:53" {
		t.Errorf("no servers: %v", got)
	}
}

func FuzzDNSQuestion(f *testing.F) {
	f.Add(question(f, "example.com.", dnsmessage.TypeA, true))
	f.Add(question(f, "example.com.", 252, false))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		msg, refused, ok := userspace.AnswerTo(raw)
		if !ok {
			return
		}
		var m dnsmessage.Message
		switch {
		case msg != nil:
			if err := m.Unpack(msg); err != nil || len(m.Questions) != 1 || m.Response {
				t.Errorf("made %x of %x: %v", msg, raw, err)
			}
			if len(msg) > 512 {
				t.Errorf("a question of %d bytes", len(msg))
			}
		case refused != nil:
			if err := m.Unpack(refused); err != nil || !m.Response {
				t.Errorf("refused %x with %x: %v", raw, refused, err)
			}
		}
	})
}

func FuzzDNSAnswer(f *testing.F) {
	q := question(f, "example.com.", dnsmessage.TypeA, false)
	for _, a := range answerAll(q, true) {
		f.Add(a)
	}
	f.Fuzz(func(t *testing.T, a []byte) {
		if userspace.AnsweredBy(q, a) && (len(a) < 12 || a[2]&0x80 == 0) {
			t.Errorf("%x taken for an answer", a)
		}
	})
}
