// Package userspace joins a VM to the world without any privilege: a TCP/IP
// stack (gVisor's netstack) in the VM's shim process ends the guest's
// connections and dials on its behalf from the host. Every flow and every DNS
// question passes one function, Policy.Allow, before anything is dialled.
//
// It is not a router: raw IP never leaves the host, and ICMP is answered only
// for the gateway's and the resolver's own addresses. It starts no process;
// internal/shim runs a Stack beside each VM.
package userspace

import (
	"context"
	"net"
	"net/netip"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/network"
)

// The guest's side of the wire is the same for every VM and every clone, so a
// template's clone needs no new address. No two guests share a wire.
const (
	MTU      = 65520
	GuestMAC = "52:54:00:62:67:01"

	gatewayMAC = "52:54:00:62:67:02"
)

var (
	guest4   = netip.MustParseAddr("10.0.2.15")
	gateway4 = netip.MustParseAddr("10.0.2.2")
	dns4     = netip.MustParseAddr("10.0.2.3")
	net4     = netip.MustParsePrefix("10.0.2.0/24")

	guest6   = netip.MustParseAddr("fd62:616e:6765:72::15")
	gateway6 = netip.MustParseAddr("fd62:616e:6765:72::2")
	dns6     = netip.MustParseAddr("fd62:616e:6765:72::3")
	net6     = netip.MustParsePrefix("fd62:616e:6765:72::/64")
)

// Config is what the backend is made from.
type Config struct {
	// LAN is network.LANAllow or network.LANDeny; "" means deny.
	LAN string
}

// Backend implements network.Backend. It keeps nothing: a link is data, and
// what runs for it ends with the VM's shim.
type Backend struct{ lan string }

var _ network.Backend = (*Backend)(nil)

// New makes the backend; a value of cfg that means nothing is errs.Invalid.
func New(cfg Config) (*Backend, error) {
	lan := cfg.LAN
	switch lan {
	case "":
		lan = network.LANDeny
	case network.LANAllow, network.LANDeny:
	default:
		return nil, errs.New(errs.Invalid, "network_lan_invalid", "network lan is %q", lan).
			WithHint(`set lan = "allow" or lan = "deny" (banger config edit)`)
	}
	return &Backend{lan: lan}, nil
}

// Name is "user".
func (*Backend) Name() string { return "user" }

// Attach gives the link that every VM of this backend has.
func (b *Backend) Attach(context.Context, string) (network.Link, error) {
	return network.Link{
		Backend: b.Name(),
		MAC:     GuestMAC,
		MTU:     MTU,
		Guest: network.Guest{
			IPv4:     netip.PrefixFrom(guest4, net4.Bits()).String(),
			Gateway4: gateway4.String(),
			IPv6:     netip.PrefixFrom(guest6, net6.Bits()).String(),
			Gateway6: gateway6.String(),
			DNS:      []string{dns4.String()},
			MTU:      MTU,
		},
		Stack: &network.Stack{LAN: b.lan},
	}, nil
}

// Detach has nothing to remove.
func (*Backend) Detach(context.Context, network.Link) error { return nil }

// Sweep has nothing to remove.
func (*Backend) Sweep(context.Context, func(string) bool) error { return nil }

func mustMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic("userspace: " + err.Error())
	}
	return mac
}
