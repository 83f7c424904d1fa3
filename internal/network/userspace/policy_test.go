package userspace_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/network/userspace"
)

// fakeHost has one public address, one private network and one range that a
// routing table sends to itself.
func fakeHost() userspace.HostView {
	return userspace.HostView{
		Addrs: func() ([]netip.Prefix, error) {
			return []netip.Prefix{
				netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("192.168.7.20/24"),
				netip.MustParsePrefix("203.0.113.9/28"), netip.MustParsePrefix("2001:db8::9/64"),
			}, nil
		},
		Local: func(a netip.Addr) (bool, error) {
			return netip.MustParsePrefix("198.51.100.128/25").Contains(a), nil
		},
	}
}

func TestPolicy(t *testing.T) {
	const open, lan, shut = "open", "lan", "shut" // always, with lan = allow, never
	for _, c := range []struct{ addr, want string }{
		{"8.8.8.8", open}, {"1.1.1.1", open}, {"203.0.113.10", open}, {"198.51.100.7", open}, {"192.0.2.1", open},
		{"2606:4700:4700::1111", open}, {"2001:db8::1", open}, {"64:ff9b::808:808", open},

		{"10.0.0.1", lan}, {"10.255.255.53", lan}, {"172.16.0.1", lan}, {"172.31.255.255", lan},
		{"192.168.1.1", lan}, {"192.168.7.1", lan}, {"100.64.0.1", lan}, {"100.127.255.255", lan},
		{"198.18.0.1", lan}, {"198.19.255.255", lan}, {"fd12:3456::1", lan}, {"fc00::1", lan},
		{"64:ff9b::a00:1", lan}, {"64:ff9b::c0a8:101", lan},

		{"0.0.0.0", shut}, {"0.1.2.3", shut}, {"127.0.0.1", shut}, {"127.0.0.53", shut}, {"127.255.255.254", shut},
		{"169.254.169.254", shut}, {"169.254.170.2", shut}, {"169.254.0.1", shut}, {"100.100.100.200", shut},
		{"168.63.129.16", shut}, {"192.0.0.192", shut}, {"192.0.0.170", shut}, {"192.88.99.1", shut},
		{"224.0.0.251", shut}, {"239.255.255.250", shut}, {"240.0.0.1", shut}, {"255.255.255.255", shut},
		{"10.0.2.2", shut}, {"10.0.2.3", shut}, {"10.0.2.15", shut}, {"10.0.2.99", shut}, {"10.0.2.255", shut},
		{"::", shut}, {"::1", shut}, {"::7f00:1", shut}, {"::8.8.8.8", shut},
		{"::ffff:127.0.0.1", shut}, {"::ffff:8.8.8.8", shut}, {"::ffff:169.254.169.254", shut},
		{"64:ff9b::7f00:1", shut}, {"64:ff9b::a9fe:a9fe", shut}, {"64:ff9b::e000:1", shut}, {"64:ff9b::cb00:7109", shut},
		{"64:ff9b:1::7f00:1", shut}, {"2002:7f00:1::1", shut}, {"2002:c0a8:101::1", shut}, {"2001:0:1::1", shut},
		{"fe80::1", shut}, {"febf::1", shut}, {"fec0::1", shut}, {"ff02::1", shut}, {"ff0e::1", shut},
		{"fd00:ec2::254", shut}, {"fd20:ce::254", shut}, {"fd62:616e:6765:72::2", shut}, {"4000::1", shut}, {"8000::1", shut},
		// the host's own, public ones too; broadcasts of its networks; routes to itself
		{"192.168.7.20", shut}, {"203.0.113.9", shut}, {"2001:db8::9", shut},
		{"192.168.7.255", shut}, {"203.0.113.15", shut}, {"198.51.100.200", shut},
	} {
		for _, allowLAN := range []bool{false, true} {
			p := userspace.Policy{LAN: allowLAN, Host: fakeHost()}
			for _, proto := range []string{"tcp", "udp"} {
				err := p.Allow(userspace.Flow{Proto: proto, Dst: netip.AddrPortFrom(netip.MustParseAddr(c.addr), 80)})
				want := c.want == open || c.want == lan && allowLAN
				if (err == nil) != want {
					t.Errorf("%s %s, lan %v: %v, want allowed %v", proto, c.addr, allowLAN, err, want)
				}
				var r *userspace.Refusal
				if err != nil && (!errors.As(err, &r) || r.Reason == "") {
					t.Errorf("%s: refusal without a reason: %v", c.addr, err)
				}
			}
		}
	}
}

func TestPolicyFailsClosed(t *testing.T) {
	broken := errors.New("netlink is gone")
	dst := userspace.Flow{Proto: "tcp", Dst: netip.MustParseAddrPort("8.8.8.8:443")}
	for name, spoil := range map[string]func(*userspace.HostView){
		"addresses": func(h *userspace.HostView) { h.Addrs = func() ([]netip.Prefix, error) { return nil, broken } },
		"routes":    func(h *userspace.HostView) { h.Local = func(netip.Addr) (bool, error) { return false, broken } },
	} {
		h := fakeHost()
		spoil(&h)
		p := userspace.Policy{Host: h}
		if err := p.Allow(dst); err == nil || !strings.Contains(err.Error(), "netlink is gone") {
			t.Errorf("%s unreadable: %v", name, err)
		}
	}
	for _, bad := range []netip.AddrPort{{}, netip.MustParseAddrPort("8.8.8.8:0"), netip.MustParseAddrPort("[2600::1%eth0]:80")} {
		p := userspace.Policy{LAN: true, Host: fakeHost()}
		if p.Allow(userspace.Flow{Proto: "tcp", Dst: bad}) == nil {
			t.Errorf("%v allowed", bad)
		}
	}
}

// The real host is asked: its loopback is local even to the route look-up.
func TestPolicyAsksTheHost(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1": true, "127.8.8.8": true, "::1": true} {
		got, err := userspace.RoutedLocally(netip.MustParseAddr(addr))
		if err != nil || got != want {
			t.Errorf("%s local: %v, %v; want %v", addr, got, err, want)
		}
	}
	addrs, err := userspace.HostAddrs()
	if err != nil || len(addrs) == 0 {
		t.Fatalf("host's addresses: %v, %v", addrs, err)
	}
}

func FuzzPolicyNeverLoopback(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1})
	f.Add([]byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		p := userspace.Policy{LAN: true, Host: fakeHost()}
		if p.Allow(userspace.Flow{Proto: "tcp", Dst: netip.AddrPortFrom(a, 1)}) != nil {
			return
		}
		u := a.Unmap()
		if u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified() || a.Is4In6() {
			t.Errorf("%v allowed", a)
		}
	})
}
