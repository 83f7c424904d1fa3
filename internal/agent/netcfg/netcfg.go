package netcfg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Config is what a network card gets. Zero values are left as they are, but
// for addresses: those of a family that are not named are taken away, so that
// a clone keeps none of its template's.
type Config struct {
	MAC      string
	MTU      int
	IPv4     netip.Prefix // with the host's bits: 10.0.2.15/24
	Gateway4 netip.Addr
	IPv6     netip.Prefix
	Gateway6 netip.Addr
}

// Empty says that there is nothing to set.
func (c Config) Empty() bool { return c == Config{} }

// Parse makes a Config of the wire's strings.
func Parse(mac string, mtu int, ipv4, gateway4, ipv6, gateway6 string) (Config, error) {
	c := Config{MAC: mac, MTU: mtu}
	if mac != "" {
		if hw, err := net.ParseMAC(mac); err != nil || len(hw) != 6 {
			return c, fmt.Errorf("mac address %q: want six bytes in hex", mac)
		}
	}
	prefix := func(s string, want6 bool, p *netip.Prefix) error {
		if s == "" {
			return nil
		}
		v, err := netip.ParsePrefix(s)
		if err == nil && v.Addr().Is6() != want6 {
			err = fmt.Errorf("address %s: of the other family", s)
		}
		*p = v
		return err
	}
	addr := func(s string, want6 bool, a *netip.Addr) error {
		if s == "" {
			return nil
		}
		v, err := netip.ParseAddr(s)
		if err == nil && v.Is6() != want6 {
			err = fmt.Errorf("address %s: of the other family", s)
		}
		*a = v.WithZone("")
		return err
	}
	return c, errors.Join(
		prefix(ipv4, false, &c.IPv4),
		prefix(ipv6, true, &c.IPv6),
		addr(gateway4, false, &c.Gateway4),
		addr(gateway6, true, &c.Gateway6))
}

// Card finds the guest's first network card (an interface with a device
// behind it, unlike lo, bridges and veths) in sysfs.
func Card(sysfs string) (string, error) {
	names, err := filepath.Glob(filepath.Join(sysfs, "class/net/*/device"))
	if err != nil || len(names) == 0 {
		return "", errors.New("no network card")
	}
	sort.Slice(names, func(i, j int) bool {
		if len(names[i]) != len(names[j]) { // eth2 before eth10
			return len(names[i]) < len(names[j])
		}
		return names[i] < names[j]
	})
	return filepath.Base(filepath.Dir(names[0])), nil
}

// loopback is lo's index: the kernel makes it first.
const loopback = 1

// LoopbackUp brings lo up, which gives it its addresses.
func LoopbackUp() error {
	return with(func(s *socket) error {
		if err := s.ask(linkMessage(loopback, true), nil); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		return nil
	})
}

// Apply gives the interface its configuration. Repeating it changes nothing.
func Apply(sysfs, name string, c Config) error {
	link, err := readLink(sysfs, name)
	if err != nil {
		return err
	}
	return with(func(s *socket) error { return s.apply(link, c) })
}

// link is an interface as it stands.
type link struct {
	name       string
	index, mtu int
	mac        string
	up         bool
}

// readLink reads an interface from sysfs, which costs less than asking for the
// list of all.
func readLink(sysfs, name string) (link, error) {
	l := link{name: name}
	read := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(sysfs, "class/net", name, file))
		return strings.TrimSpace(string(b))
	}
	var err error
	if l.index, err = strconv.Atoi(read("ifindex")); err != nil {
		return l, fmt.Errorf("interface %s: no index", name)
	}
	l.mtu, _ = strconv.Atoi(read("mtu"))
	l.mac = read("address")
	flags, _ := strconv.ParseUint(read("flags"), 0, 32)
	l.up = flags&unix.IFF_UP != 0
	return l, nil
}

// socket is an rtnetlink socket.
type socket struct {
	fd  int
	seq uint32
	buf []byte
}

func with(do func(*socket) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers a request before sendto returns; the limit is for
	// the case that it does not.
	limit := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	return do(&socket{fd: fd, buf: make([]byte, 64<<10)})
}

// ask sends m and hands on every message of the answer until its end.
func (s *socket) ask(m *message, each func(reply) error) error {
	s.seq++
	if err := unix.Sendto(s.fd, m.finish(s.seq), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not the kernel
		}
		replies, err := split(s.buf[:n])
		if err != nil {
			return err
		}
		for _, r := range replies {
			switch {
			case r.seq != s.seq:
			case r.kind == unix.NLMSG_DONE:
				return nil
			case r.kind == unix.NLMSG_ERROR:
				if len(r.body) < 4 {
					return errShort
				}
				if code := int32(binary.NativeEndian.Uint32(r.body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			case each != nil:
				if err := each(r); err != nil {
					return err
				}
			}
		}
	}
}

func (s *socket) apply(l link, c Config) error {
	if err := s.link(l, c); err != nil {
		return err
	}
	if err := s.addresses(l.index, c); err != nil {
		return err
	}
	return errors.Join(
		s.route(l.index, unix.AF_INET, c.Gateway4),
		s.route(l.index, unix.AF_INET6, c.Gateway6))
}

// route sets a family's default route, or takes away the one by this card.
func (s *socket) route(index int, family uint8, gateway netip.Addr) error {
	if gateway.IsValid() {
		if err := s.ask(routeMessage(index, gateway), nil); err != nil {
			return fmt.Errorf("route by %s: %w", gateway, err)
		}
		return nil
	}
	err := s.ask(noRouteMessage(index, family), nil)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("remove default route: %w", err)
	}
	return nil
}

// link sets MAC and MTU, and brings the card up.
func (s *socket) link(l link, c Config) error {
	m := linkMessage(l.index, true)
	change := !l.up
	if hw, err := net.ParseMAC(c.MAC); err == nil && hw.String() != l.mac {
		m.attr(unix.IFLA_ADDRESS, hw)
		change = true
	}
	if c.MTU != 0 && c.MTU != l.mtu {
		m.attr32(unix.IFLA_MTU, uint32(c.MTU))
		change = true
	}
	if !change {
		return nil
	}
	quiet(l.name)
	if err := s.ask(m, nil); err != nil {
		return fmt.Errorf("set up %s: %w", l.name, err)
	}
	return nil
}

// quiet keeps IPv6 from probing and from configuring itself by what the
// network says; a kernel without IPv6 has no such files.
func quiet(name string) {
	if strings.ContainsAny(name, "/.") {
		return
	}
	for file, value := range map[string]string{"accept_ra": "0", "accept_dad": "0", "dad_transmits": "0"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+file, []byte(value), 0)
	}
}

// addresses takes away the addresses that are not wanted and adds those that
// are missing. A link-local one that belongs to another MAC is a template's,
// and so another clone's too.
func (s *socket) addresses(index int, c Config) error {
	want := []netip.Prefix{c.IPv4, c.IPv6}
	mac, _ := net.ParseMAC(c.MAC)
	own := linkLocal(mac)
	have := map[netip.Prefix]bool{}
	var stale []netip.Prefix
	dump := newMessage(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	err := s.ask(dump, func(r reply) error {
		if r.kind != unix.RTM_NEWADDR {
			return nil
		}
		i, p, err := addrOf(r.body)
		if err != nil || i != index {
			return err
		}
		switch {
		case slices.Contains(want, p), p == own:
			have[p] = true
		case !p.Addr().IsLinkLocalUnicast():
			stale = append(stale, p)
		case p.Addr().Is6() && own.IsValid():
			stale = append(stale, p)
			want = append(want, own)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, p := range stale {
		if err := s.ask(addrMessage(unix.RTM_DELADDR, index, p), nil); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, p := range want {
		if !p.IsValid() || have[p] {
			continue
		}
		if err := s.ask(addrMessage(unix.RTM_NEWADDR, index, p), nil); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
		have[p] = true
	}
	return nil
}
