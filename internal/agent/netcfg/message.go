// Package netcfg gives a guest's network card its addresses over rtnetlink:
// MAC, MTU, static IPv4 and IPv6 addresses and default routes, and nothing
// else of what netlink can do. It knows neither DHCP nor names; resolv.conf is
// agent/identity's.
package netcfg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// message builds one netlink request: header, a family-specific fixed part and
// attributes, everything aligned to four bytes.
type message struct{ b []byte }

const headerLen = 16

// newMessage starts a request; its length and sequence are set by finish.
func newMessage(kind, flags uint16, fixed []byte) *message {
	b := make([]byte, headerLen, 128)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	return (&message{b: b}).append(fixed)
}

func (m *message) append(data []byte) *message {
	m.b = append(m.b, data...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
	return m
}

// attr adds an attribute.
func (m *message) attr(kind uint16, data []byte) *message {
	var head [4]byte
	binary.NativeEndian.PutUint16(head[0:], uint16(4+len(data)))
	binary.NativeEndian.PutUint16(head[2:], kind)
	m.b = append(m.b, head[:]...)
	return m.append(data)
}

func (m *message) attr32(kind uint16, v uint32) *message {
	return m.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func (m *message) finish(seq uint32) []byte {
	binary.NativeEndian.PutUint32(m.b[0:], uint32(len(m.b)))
	binary.NativeEndian.PutUint32(m.b[8:], seq)
	return m.b
}

// reply is one message of an answer.
type reply struct {
	kind uint16
	seq  uint32
	body []byte
}

var errShort = errors.New("netlink: message cut short")

// split cuts a datagram into its messages.
func split(b []byte) ([]reply, error) {
	var out []reply
	for len(b) > 0 {
		if len(b) < headerLen {
			return nil, errShort
		}
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return nil, errShort
		}
		out = append(out, reply{
			kind: binary.NativeEndian.Uint16(b[4:]),
			seq:  binary.NativeEndian.Uint32(b[8:]),
			body: b[headerLen:n],
		})
		b = b[min((n+3)&^3, len(b)):]
	}
	return out, nil
}

// attrs cuts the part of a message after its fixed part into attributes; of a
// kind that comes twice the last one counts.
func attrs(b []byte) (map[uint16][]byte, error) {
	out := map[uint16][]byte{}
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return nil, errShort
		}
		out[kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[4:n]
		b = b[min((n+3)&^3, len(b)):]
	}
	return out, nil
}

// linkMessage changes an interface: flags in mask take up's bits.
func linkMessage(index int, up bool) *message {
	fixed := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(fixed[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(fixed[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(fixed[12:], unix.IFF_UP)
	}
	return newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, fixed)
}

// addrMessage adds (or, with RTM_DELADDR, takes away) an address. IPv6 ones
// are used at once, without duplicate address detection: they are the host's
// to hand out.
func addrMessage(kind uint16, index int, p netip.Prefix) *message {
	flags := uint16(unix.NLM_F_ACK)
	if kind == unix.RTM_NEWADDR {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	fixed := make([]byte, unix.SizeofIfAddrmsg)
	fixed[0] = family(p.Addr())
	fixed[1] = uint8(p.Bits())
	if p.Addr().Is6() {
		fixed[2] = unix.IFA_F_NODAD
	}
	if p.Addr().IsLinkLocalUnicast() {
		fixed[3] = unix.RT_SCOPE_LINK
	}
	binary.NativeEndian.PutUint32(fixed[4:], uint32(index))
	raw := p.Addr().AsSlice()
	m := newMessage(kind, flags, fixed).attr(unix.IFA_LOCAL, raw).attr(unix.IFA_ADDRESS, raw)
	if p.Addr().Is4() && p.Bits() < 31 && kind == unix.RTM_NEWADDR {
		m.attr(unix.IFA_BROADCAST, broadcast(p))
	}
	return m
}

func broadcast(p netip.Prefix) []byte {
	b := p.Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	v := binary.BigEndian.Uint32(b[:]) | host
	return binary.BigEndian.AppendUint32(nil, v)
}

// routeMessage sets the default route of the gateway's family.
func routeMessage(index int, gateway netip.Addr) *message {
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0] = family(gateway)
	fixed[4] = unix.RT_TABLE_MAIN
	fixed[5] = unix.RTPROT_STATIC
	fixed[6] = unix.RT_SCOPE_UNIVERSE
	fixed[7] = unix.RTN_UNICAST
	if gateway.Is4() { // the gateway may lie outside the address's prefix
		binary.NativeEndian.PutUint32(fixed[8:], unix.RTNH_F_ONLINK)
	}
	return newMessage(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fixed).
		attr(unix.RTA_GATEWAY, gateway.AsSlice()).attr32(unix.RTA_OIF, uint32(index))
}

// noRouteMessage takes away the family's default route by the card.
func noRouteMessage(index int, family uint8) *message {
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0] = family
	fixed[4] = unix.RT_TABLE_MAIN
	fixed[6] = unix.RT_SCOPE_NOWHERE // of any scope
	return newMessage(unix.RTM_DELROUTE, unix.NLM_F_ACK, fixed).attr32(unix.RTA_OIF, uint32(index))
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrOf reads an RTM_NEWADDR: the interface and the address.
func addrOf(body []byte) (index int, p netip.Prefix, err error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return 0, p, errShort
	}
	as, err := attrs(body[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, p, err
	}
	raw := as[unix.IFA_LOCAL]
	if raw == nil {
		raw = as[unix.IFA_ADDRESS]
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return 0, p, fmt.Errorf("netlink: address of %d bytes", len(raw))
	}
	p = netip.PrefixFrom(a, int(body[1]))
	return int(binary.NativeEndian.Uint32(body[4:])), p, nil
}

// linkLocal is the address that a card of this MAC takes by itself (EUI-64).
func linkLocal(mac net.HardwareAddr) netip.Prefix {
	if len(mac) != 6 {
		return netip.Prefix{}
	}
	a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}
