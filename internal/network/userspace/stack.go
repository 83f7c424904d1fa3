package userspace

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/banger-dev/banger/internal/errs"
)

const (
	nicID = 1

	maxInFlight = 2048 // SYNs waiting for their dial
	maxTCP      = 4096 // connections
	maxUDP      = 1024 // flows
	dialTimeout = 10 * time.Second
)

// Options is what a Stack is made from. Only Policy has no useful zero value
// of its own choosing: the zero Policy denies the LAN.
type Options struct {
	Policy Policy
	// Dial makes a connection on the host after the policy allowed it; nil
	// means the host's own. Tests put stand-ins for public addresses here.
	Dial func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)
	// Resolvers gives the host's DNS servers, asked at each need; nil
	// reads /etc/resolv.conf.
	Resolvers func() ([]netip.AddrPort, error)
	// Log takes one line for each refused flow (rate limited); nil
	// discards.
	Log *slog.Logger
}

// Counters is what a stack did so far.
type Counters struct {
	FramesIn      uint64 `json:"frames_in"`
	FramesOut     uint64 `json:"frames_out"`
	FramesDropped uint64 `json:"frames_dropped"`
	TCPOpen       int64  `json:"tcp_open"`
	TCPTotal      uint64 `json:"tcp_total"`
	UDPOpen       int64  `json:"udp_open"`
	UDPTotal      uint64 `json:"udp_total"`
	DNSTotal      uint64 `json:"dns_total"`
	Refused       uint64 `json:"refused"`
	DialFailed    uint64 `json:"dial_failed"`
	BytesOut      uint64 `json:"bytes_out"` // guest to world
	BytesIn       uint64 `json:"bytes_in"`  // world to guest
}

// Refused is one flow that was refused.
type Refused struct {
	At     time.Time `json:"at"`
	Flow   string    `json:"flow"`
	Reason string    `json:"reason"`
}

// Stack is the host's end of one VM's NIC.
type Stack struct {
	opts Options
	log  *slog.Logger
	link *link
	net  *stack.Stack

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex // guards ended, and wg against growing after it
	ended  bool

	tcpOpen, udpOpen                   atomic.Int64
	tcpTotal, udpTotal, dnsTotal       atomic.Uint64
	refused, failed, bytesOut, bytesIn atomic.Uint64
	refusals                           refusalLog
	dnsSlots                           chan struct{}
}

// Start puts a stack on the NIC's stream socket, which it then owns. It ends
// when ctx does, when the wire does, or with Close; Wait tells how.
func Start(ctx context.Context, conn net.Conn, opts Options) (*Stack, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Resolvers == nil {
		opts.Resolvers = hostResolvers
	}
	if opts.Dial == nil {
		d := &net.Dialer{}
		opts.Dial = func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, dst.String())
		}
	}
	s := &Stack{opts: opts, log: opts.Log, link: newLink(conn), dnsSlots: make(chan struct{}, maxDNS)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.net = newNetstack()
	if err := s.configure(); err != nil {
		s.cancel()
		s.link.Close()
		s.net.Destroy()
		return nil, errs.Wrap(err, errs.Internal, "network_stack", "set up the network stack")
	}
	return s, nil
}

func newNetstack() *stack.Stack {
	return stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
}

// configure sets options and addresses and puts the handlers in.
func (s *Stack) configure() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// The wire reorders and repeats nothing, so a closed port pair can be
	// used again soon.
	wait := tcpip.TCPTimeWaitTimeoutOption(5 * time.Second)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &rcv, &snd} {
		if err := s.net.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return tcpipError(err)
		}
	}
	if err := s.net.CreateNIC(nicID, ethernet.New(s.link)); err != nil {
		return tcpipError(err)
	}
	if err := s.addresses(); err != nil {
		return err
	}
	// Any destination is taken (promiscuous) and answered from (spoofing).
	if err := s.net.SetPromiscuousMode(nicID, true); err != nil {
		return tcpipError(err)
	}
	if err := s.net.SetSpoofing(nicID, true); err != nil {
		return tcpipError(err)
	}
	s.net.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	fwd := tcp.NewForwarder(s.net, 0, maxInFlight, s.handleTCP)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, fwd.HandlePacket)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s.net, s.handleUDP).HandlePacket)
	return s.serveDNS()
}

func (s *Stack) addresses() error {
	for _, a := range []struct {
		proto tcpip.NetworkProtocolNumber
		addr  netip.Addr
		bits  int
	}{
		{ipv4.ProtocolNumber, gateway4, net4.Bits()},
		{ipv4.ProtocolNumber, dns4, net4.Bits()},
		{ipv6.ProtocolNumber, gateway6, net6.Bits()},
		{ipv6.ProtocolNumber, dns6, net6.Bits()},
	} {
		err := s.net.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          a.proto,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpipAddr(a.addr), PrefixLen: a.bits},
		}, stack.AddressProperties{})
		if err != nil {
			return tcpipError(err)
		}
	}
	guest := tcpip.LinkAddress(mustMAC(GuestMAC))
	for proto, addr := range map[tcpip.NetworkProtocolNumber]netip.Addr{ipv4.ProtocolNumber: guest4, ipv6.ProtocolNumber: guest6} {
		if err := s.net.AddStaticNeighbor(nicID, proto, tcpipAddr(addr), guest); err != nil {
			return tcpipError(err)
		}
	}
	return nil
}

// Run moves frames until the wire or ctx ends, then ends every flow and waits
// for all that the stack started. A wire closed by its peer is no error.
func (s *Stack) Run() error {
	errc := make(chan error, 2)
	go func() { errc <- s.link.read() }()
	go func() { errc <- s.link.write() }()
	stop := context.AfterFunc(s.ctx, s.link.Close)
	err := <-errc
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.link.Close()
	<-errc //nolint:errcheck // the other side's end follows from the first
	stop()
	s.net.Close()
	s.wg.Wait()
	s.net.Destroy()
	for len(s.link.out) > 0 {
		(<-s.link.out).DecRef()
	}
	if wireGone(err) {
		return nil
	}
	return err
}

// wireGone says whether err is how a wire ends whose other end was closed.
func wireGone(err error) bool {
	for _, e := range []error{nil, io.EOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter counts a goroutine in; false once the stack ends. Whoever enters
// calls wg.Done.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.wg.Add(1)
	return true
}

// own runs f in a goroutine that Run waits for; false once the stack ends.
func (s *Stack) own(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.wg.Done()
		f()
	}()
	return true
}

// Close makes Run return.
func (s *Stack) Close() { s.cancel() }

// Counters gives what was done so far.
func (s *Stack) Counters() Counters {
	return Counters{
		FramesIn: s.link.framesIn.Load(), FramesOut: s.link.framesOut.Load(), FramesDropped: s.link.dropped.Load(),
		TCPOpen: s.tcpOpen.Load(), TCPTotal: s.tcpTotal.Load(),
		UDPOpen: s.udpOpen.Load(), UDPTotal: s.udpTotal.Load(), DNSTotal: s.dnsTotal.Load(),
		Refused: s.refused.Load(), DialFailed: s.failed.Load(),
		BytesOut: s.bytesOut.Load(), BytesIn: s.bytesIn.Load(),
	}
}

// Refusals gives the latest refused flows, oldest first.
func (s *Stack) Refusals() []Refused { return s.refusals.list() }

// allow asks the policy and keeps what it refused.
func (s *Stack) allow(f Flow) bool {
	err := s.opts.Policy.Allow(f)
	if err == nil {
		return true
	}
	s.refused.Add(1)
	if s.refusals.add(Refused{At: time.Now().UTC(), Flow: f.String(), Reason: err.Error()}) {
		s.log.Info("refused", "flow", f.String(), "reason", err.Error())
	}
	return false
}

// refusalLog keeps the last refusals and says which are worth a line in the
// log: at most one a second, for a guest may refuse to stop asking.
type refusalLog struct {
	mu   sync.Mutex
	ring []Refused
	last time.Time
}

const keptRefusals = 64

func (r *refusalLog) add(x Refused) (logIt bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) == keptRefusals {
		copy(r.ring, r.ring[1:])
		r.ring = r.ring[:keptRefusals-1]
	}
	r.ring = append(r.ring, x)
	if x.At.Sub(r.last) < time.Second {
		return false
	}
	r.last = x.At
	return true
}

func (r *refusalLog) list() []Refused {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Refused(nil), r.ring...)
}

func tcpipError(err tcpip.Error) error { return errors.New(err.String()) }

func tcpipAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(ip, port)
}
