package userspace

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

const (
	dnsPort = 53
	// maxDNS bounds questions under way, and connections that may ask.
	maxDNS = 256
	// dnsTry is how long one resolver has, dnsTotal all of them.
	dnsTry   = 3 * time.Second
	dnsTotal = 9 * time.Second
	// dnsIdle ends a connection on which nothing is asked.
	dnsIdle = 15 * time.Second
	// maxQuery is the longest question taken: a name, its types and options.
	maxQuery = 1232
	// maxAnswer is the longest answer DNS can carry.
	maxAnswer = 65535
)

// serveDNS listens on the resolver's addresses, UDP and TCP. Questions go to
// the host's resolvers; the hosts file, search domains and multicast DNS of
// the host are not the guest's.
func (s *Stack) serveDNS() error {
	for proto, addr := range map[tcpip.NetworkProtocolNumber]netip.Addr{ipv4.ProtocolNumber: dns4, ipv6.ProtocolNumber: dns6} {
		full := tcpip.FullAddress{NIC: nicID, Addr: tcpipAddr(addr), Port: dnsPort}
		pc, err := gonet.DialUDP(s.net, &full, nil, proto)
		if err != nil {
			return err
		}
		ln, err := gonet.ListenTCP(s.net, full, proto)
		if err != nil {
			pc.Close()
			return err
		}
		context.AfterFunc(s.ctx, func() { pc.Close(); ln.Shutdown(); ln.Close() })
		s.own(func() { s.dnsDatagrams(pc) })
		s.own(func() { s.dnsConnections(ln) })
	}
	return nil
}

// slot takes a place for one question or connection; nil when all are taken.
func (s *Stack) slot() (release func()) {
	select {
	case s.dnsSlots <- struct{}{}:
		return func() { <-s.dnsSlots }
	default:
		return nil
	}
}

func (s *Stack) dnsDatagrams(pc *gonet.UDPConn) {
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if n > maxQuery {
			continue
		}
		release := s.slot()
		if release == nil {
			continue // the guest asks again; silence slows it down
		}
		q := append([]byte(nil), buf[:n]...)
		if !s.own(func() {
			defer release()
			if a := s.answer(q, "udp"); a != nil {
				_, _ = pc.WriteTo(a, from) // a lost answer is asked for again
			}
		}) {
			release()
		}
	}
}

func (s *Stack) dnsConnections(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		release := s.slot()
		if release == nil {
			_ = c.Close() // nothing was read
			continue
		}
		if !s.own(func() {
			defer release()
			defer c.Close()
			stop := context.AfterFunc(s.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // wakes it
			defer stop()
			s.dnsConversation(c)
		}) {
			release()
			_ = c.Close() // the stack ends
		}
	}
}

// dnsConversation answers question after question of one connection.
func (s *Stack) dnsConversation(c net.Conn) {
	for s.ctx.Err() == nil {
		if err := c.SetDeadline(time.Now().Add(dnsIdle)); err != nil {
			return
		}
		q, err := readDNS(c, maxQuery)
		if err != nil {
			return
		}
		a := s.answer(q, "tcp")
		if a == nil {
			return
		}
		if err := writeDNS(c, a); err != nil {
			return
		}
	}
}

// answer gives the answer to one question; nil when it deserves none.
func (s *Stack) answer(raw []byte, network string) []byte {
	q, rcode, ok := parseQuestion(raw)
	if !ok {
		return nil
	}
	s.dnsTotal.Add(1)
	if rcode != dnsmessage.RCodeSuccess {
		return q.fail(rcode)
	}
	if !s.allow(Flow{Proto: "dns", Name: q.question.Name.String()}) {
		return q.fail(dnsmessage.RCodeRefused)
	}
	servers, err := s.opts.Resolvers()
	if err != nil {
		s.failed.Add(1)
		return q.fail(dnsmessage.RCodeServerFailure)
	}
	ctx, cancel := context.WithTimeout(s.ctx, dnsTotal)
	defer cancel()
	for _, server := range servers {
		a, err := ask(ctx, network, server, q)
		if err == nil {
			return a
		}
		if ctx.Err() != nil {
			break
		}
	}
	s.failed.Add(1)
	return q.fail(dnsmessage.RCodeServerFailure)
}

// ask puts a question to one resolver of the host's. It does not pass the
// policy's flow check: the resolver is the host's own choice and may well be
// on its loopback.
func ask(ctx context.Context, network string, server netip.AddrPort, q query) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTry)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // wakes it
	defer stop()
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	msg, err := q.build(binary.BigEndian.Uint16(id[:]))
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		return askStream(c, msg, q)
	}
	return askDatagram(c, msg, q)
}

func askStream(c net.Conn, msg []byte, q query) ([]byte, error) {
	if err := writeDNS(c, msg); err != nil {
		return nil, err
	}
	a, err := readDNS(c, maxAnswer)
	if err != nil {
		return nil, err
	}
	if !q.answeredBy(a, msg) {
		return nil, errors.New("answer to another question")
	}
	return q.restore(a), nil
}

func askDatagram(c net.Conn, msg []byte, q query) ([]byte, error) {
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	bp := pool.Get().(*[]byte)
	defer pool.Put(bp)
	for {
		n, err := c.Read(*bp)
		if err != nil {
			return nil, err
		}
		if a := (*bp)[:n]; q.answeredBy(a, msg) {
			return q.restore(append([]byte(nil), a...)), nil
		}
	}
}

// readDNS reads one message with its length before it, as on TCP.
func readDNS(r io.Reader, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > limit {
		return nil, errors.New("message too long")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDNS(w io.Writer, msg []byte) error {
	if len(msg) > maxAnswer {
		return errors.New("message too long")
	}
	b := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(b, uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}
