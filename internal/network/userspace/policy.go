package userspace

import (
	"fmt"
	"net"
	"net/netip"
)

// Flow is what a guest asks for: a connection, a datagram flow or, with Proto
// "dns", the answer to a question.
type Flow struct {
	Proto string         // "tcp", "udp" or "dns"
	Dst   netip.AddrPort // where to; zero for dns
	Name  string         // the name asked for; dns only
}

// String names the flow for logs.
func (f Flow) String() string {
	if f.Proto == "dns" {
		return fmt.Sprintf("dns %q", f.Name)
	}
	return f.Proto + " " + f.Dst.String()
}

// Refusal says why a flow may not be; it is an error.
type Refusal struct{ Reason string }

// Error gives the reason.
func (r *Refusal) Error() string { return r.Reason }

// HostView answers what only the host can say. Both are asked at every flow:
// addresses come and go with networks and VPNs.
type HostView struct {
	// Addrs are the host's own addresses with their networks.
	Addrs func() ([]netip.Prefix, error)
	// Local says whether the kernel would deliver to addr on the host
	// itself or broadcast it, whatever interface table it comes from.
	Local func(netip.Addr) (bool, error)
}

// Policy decides what a guest may reach. The zero value denies the LAN and
// asks the real host.
type Policy struct {
	LAN  bool // private ranges may be reached
	Host HostView
}

// named ranges, in the order they are looked at.
type rangeRule struct {
	prefix netip.Prefix
	why    string
}

func rule(prefix, why string) rangeRule { return rangeRule{netip.MustParsePrefix(prefix), why} }

// Never reachable, whatever the policy says. The cloud metadata addresses
// outside the link-local range are listed one by one: some lie in ranges that
// lan = "allow" opens.
var never = []rangeRule{
	rule("0.0.0.0/8", "this-network address"),
	rule("127.0.0.0/8", "the host's loopback"),
	rule("169.254.0.0/16", "link-local (cloud metadata included)"),
	rule("168.63.129.16/32", "cloud metadata"),
	rule("100.100.100.200/32", "cloud metadata"),
	rule("192.0.0.0/24", "protocol assignment (cloud metadata included)"),
	rule("192.88.99.0/24", "6to4 relay"),
	rule("224.0.0.0/4", "multicast"),
	rule("240.0.0.0/4", "reserved or broadcast"),
	rule("10.0.2.0/24", "the guest's own network"),

	rule("fd62:616e:6765:72::/64", "the guest's own network"),
	rule("fd00:ec2::/32", "cloud metadata"),
	rule("fd20:ce::/32", "cloud metadata"),
	rule("64:ff9b:1::/48", "local-use IPv4 translation"),
	rule("2001::/32", "Teredo tunnel"),
	rule("2002::/16", "6to4 tunnel"),
	rule("::/8", "loopback, unspecified or embedded IPv4"),
	rule("fe80::/10", "link-local"),
	rule("fec0::/10", "site-local"),
	rule("ff00::/8", "multicast"),
}

// Reachable only with LAN.
var private = []rangeRule{
	rule("10.0.0.0/8", "private network"),
	rule("172.16.0.0/12", "private network"),
	rule("192.168.0.0/16", "private network"),
	rule("100.64.0.0/10", "carrier-grade NAT or VPN"),
	rule("198.18.0.0/15", "benchmark network"),
	rule("fc00::/7", "private network (unique local)"),
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	global = netip.MustParsePrefix("2000::/3")
)

// Allow is the one door: nil when f may be, a *Refusal when not. It fails
// closed: when the host cannot be asked, the answer is no.
func (p *Policy) Allow(f Flow) error {
	if f.Proto == "dns" {
		// An answer may name any address; dialling it comes back here.
		return nil
	}
	addr := f.Dst.Addr()
	if f.Dst.Port() == 0 {
		return &Refusal{"port 0"}
	}
	if !addr.IsValid() || addr.Zone() != "" {
		return &Refusal{"not an address"}
	}
	if addr.Is4In6() {
		// No guest needs this spelling, and many a filter fell for it.
		return &Refusal{"IPv4-mapped address"}
	}
	if nat64.Contains(addr) {
		// The network behind the host turns this into IPv4: what counts
		// is where it would come out.
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:16]))
	}
	if err := p.allowAddr(addr); err != nil {
		return err
	}
	return p.allowHost(addr)
}

func (p *Policy) allowAddr(addr netip.Addr) error {
	for _, r := range never {
		if r.prefix.Contains(addr) {
			return &Refusal{r.why}
		}
	}
	for _, r := range private {
		if r.prefix.Contains(addr) {
			if p.LAN {
				return nil
			}
			return &Refusal{r.why + `, and lan is "deny"`}
		}
	}
	if addr.Is6() && !global.Contains(addr) {
		return &Refusal{"not a global address"}
	}
	return nil
}

// allowHost keeps the guest off every address of the host's own, public ones
// included, and off the broadcast addresses of its networks.
func (p *Policy) allowHost(addr netip.Addr) error {
	addrs, local := p.Host.Addrs, p.Host.Local
	if addrs == nil {
		addrs = hostAddrs
	}
	if local == nil {
		local = routedLocally
	}
	own, err := addrs()
	if err != nil {
		return &Refusal{"the host's addresses cannot be read: " + err.Error()}
	}
	for _, pfx := range own {
		if pfx.Addr() == addr {
			return &Refusal{"the host's own address"}
		}
		if pfx.Addr().Is4() && pfx.Bits() < 31 && addr == broadcast(pfx) {
			return &Refusal{"broadcast"}
		}
	}
	is, err := local(addr)
	if err != nil {
		return &Refusal{"the host's routes cannot be read: " + err.Error()}
	}
	if is {
		return &Refusal{"routed to the host itself"}
	}
	return nil
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func hostAddrs() ([]netip.Prefix, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		bits, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return out, nil
}
