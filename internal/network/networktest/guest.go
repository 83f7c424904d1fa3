// Package networktest holds what tests of networks share: the suite that every
// backend passes, and a guest made of a TCP/IP stack of its own, which sits on
// the NIC's stream socket in a virtual machine's place. Nothing of the product
// imports it.
package networktest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/banger-dev/banger/internal/network"
)

const nic = 1

// Guest is a machine with the addresses that a link gives it.
type Guest struct {
	Stack *stack.Stack
	mu    sync.Mutex // one frame at a time on conn
	conn  net.Conn
	addr4 netip.Addr
	addr6 netip.Addr
}

// Socketpair makes the NIC's wire: the guest's end, and the file that a shim
// or a stack is given.
func Socketpair(t testing.TB) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "nic-guest"), os.NewFile(uintptr(fds[1]), "nic-host")
	conn, err := net.FileConn(near)
	if err != nil {
		t.Fatal(err)
	}
	near.Close()
	return conn, far
}

// NewGuest starts a guest on its end of the wire; it ends with the test.
func NewGuest(t testing.TB, conn net.Conn, link network.Link) *Guest {
	t.Helper()
	mac, err := net.ParseMAC(link.MAC)
	if err != nil {
		t.Fatal(err)
	}
	ep := channel.New(512, uint32(link.MTU)+header.EthernetMinimumSize, tcpip.LinkAddress(mac))
	g := &Guest{conn: conn, Stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})}
	must(t, g.Stack.CreateNIC(nic, ethernet.New(ep)))
	sack := tcpip.TCPSACKEnabled(true)
	must(t, g.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	g.addr4 = g.address(t, ipv4.ProtocolNumber, link.Guest.IPv4)
	g.addr6 = g.address(t, ipv6.ProtocolNumber, link.Guest.IPv6)
	g.Stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, Gateway: toAddr(netip.MustParseAddr(link.Guest.Gateway4)), NIC: nic},
		{Destination: header.IPv6EmptySubnet, Gateway: toAddr(netip.MustParseAddr(link.Guest.Gateway6)), NIC: nic},
	})

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { g.receive(ep); done <- struct{}{} }()
	go func() { g.send(ctx, ep); done <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		conn.Close()
		<-done
		<-done
		g.Stack.Destroy()
	})
	return g
}

func (g *Guest) address(t testing.TB, proto tcpip.NetworkProtocolNumber, prefix string) netip.Addr {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	must(t, g.Stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          proto,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddr(p.Addr()), PrefixLen: p.Bits()},
	}, stack.AddressProperties{}))
	return p.Addr()
}

func (g *Guest) receive(ep *channel.Endpoint) {
	r := bufio.NewReaderSize(g.conn, 128<<10)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		ep.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

func (g *Guest) send(ctx context.Context, ep *channel.Endpoint) {
	for {
		pkt := ep.ReadContext(ctx)
		if pkt == nil {
			return
		}
		err := g.frame(pkt.AsSlices()...)
		pkt.DecRef()
		if err != nil {
			return
		}
	}
}

func (g *Guest) frame(parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	head := make([]byte, 4)
	binary.BigEndian.PutUint32(head, uint32(n))
	bufs := append(net.Buffers{head}, parts...)
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := bufs.WriteTo(g.conn)
	return err
}

// Dial connects from the guest: network is "tcp" or "udp".
func (g *Guest) Dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	proto := ipv4.ProtocolNumber
	if dst.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	full := tcpip.FullAddress{NIC: nic, Addr: toAddr(dst.Addr()), Port: dst.Port()}
	if network == "udp" {
		return gonet.DialUDP(g.Stack, nil, &full, proto)
	}
	return gonet.DialContextTCP(ctx, g.Stack, full, proto)
}

// Ping sends one ICMP echo and says whether an answer came in time.
func (g *Guest) Ping(dst netip.Addr, wait time.Duration) (bool, error) {
	proto, trans, msg := ipv4.ProtocolNumber, icmp.ProtocolNumber4, []byte{8, 0, 0, 0, 0, 0, 0, 1}
	if dst.Is6() {
		proto, trans, msg[0] = ipv6.ProtocolNumber, icmp.ProtocolNumber6, 128
	}
	var wq waiter.Queue
	ep, terr := g.Stack.NewEndpoint(trans, proto, &wq)
	if terr != nil {
		return false, errors.New(terr.String())
	}
	if terr := ep.Connect(tcpip.FullAddress{NIC: nic, Addr: toAddr(dst)}); terr != nil {
		ep.Close()
		return false, errors.New(terr.String())
	}
	c := gonet.NewUDPConn(&wq, ep)
	defer c.Close()
	if _, err := c.Write(append(msg, "ping"...)); err != nil {
		return false, err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	_, err := c.Read(make([]byte, 128))
	return err == nil, nil
}

// SYN puts the opening packet of a TCP connection on the wire by hand, for
// destinations that a decent stack would not send to.
func (g *Guest) SYN(dst netip.AddrPort) error {
	const srcPort, gatewayMAC = 40000, "\x52\x54\x00\x62\x67\x02"
	tcpHeader := make(header.TCP, header.TCPMinimumSize)
	tcpHeader.Encode(&header.TCPFields{
		SrcPort: srcPort, DstPort: dst.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize,
		Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	src, proto := g.addr4, ipv4.ProtocolNumber
	if dst.Addr().Is6() {
		src, proto = g.addr6, ipv6.ProtocolNumber
	}
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddr(src), toAddr(dst.Addr()), header.TCPMinimumSize)
	tcpHeader.SetChecksum(^tcpHeader.CalculateChecksum(sum))
	var ip []byte
	if dst.Addr().Is6() {
		h := make(header.IPv6, header.IPv6MinimumSize)
		h.Encode(&header.IPv6Fields{
			PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: toAddr(src), DstAddr: toAddr(dst.Addr()),
		})
		ip = h
	} else {
		h := make(header.IPv4, header.IPv4MinimumSize)
		h.Encode(&header.IPv4Fields{
			TotalLength: header.IPv4MinimumSize + header.TCPMinimumSize, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: toAddr(src), DstAddr: toAddr(dst.Addr()),
		})
		h.SetChecksum(^h.CalculateChecksum())
		ip = h
	}
	eth := make(header.Ethernet, header.EthernetMinimumSize)
	mac, _ := g.Stack.NICInfo()[nic]
	eth.Encode(&header.EthernetFields{SrcAddr: mac.LinkAddress, DstAddr: gatewayMAC, Type: proto})
	return g.frame(eth, ip, tcpHeader)
}

func toAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func must(t testing.TB, err tcpip.Error) {
	t.Helper()
	if err != nil {
		t.Fatal(err.String())
	}
}
