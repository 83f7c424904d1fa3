// Package network is the port to what joins a VM to the world. A backend
// makes a Link, plain data that says how the NIC is joined and what addresses
// the agent sets inside. Adapters stand beneath: userspace (a TCP/IP stack in
// the VM's shim process, no privilege), later bridge.
package network

import "context"

// Backend makes and removes the host's side of a VM's network.
type Backend interface {
	// Name is "user", "none" or "bridge".
	Name() string
	// Attach prepares the host's side for a VM. Idempotent by vmID: a
	// second call gives the same Link.
	Attach(ctx context.Context, vmID string) (Link, error)
	// Detach removes what Attach made. Idempotent; it needs only the Link.
	Detach(ctx context.Context, link Link) error
	// Sweep removes what belongs to banger and to no VM that keep names.
	Sweep(ctx context.Context, keep func(vmID string) bool) error
}

// Link is a VM's network as plain data, stored with the VM.
type Link struct {
	Backend string `json:"backend"`
	MAC     string `json:"mac"`
	MTU     int    `json:"mtu"`
	Guest   Guest  `json:"guest"`
	// TAP is the interface the hypervisor opens, or "".
	TAP string `json:"tap,omitempty"`
	// Stack is what the shim runs for the VM, or nil.
	Stack *Stack `json:"stack,omitempty"`
}

// Guest is what the agent sets inside: static addresses, no DHCP.
type Guest struct {
	IPv4     string   `json:"ipv4,omitempty"` // "10.0.2.15/24"
	Gateway4 string   `json:"gateway4,omitempty"`
	IPv6     string   `json:"ipv6,omitempty"`
	Gateway6 string   `json:"gateway6,omitempty"`
	DNS      []string `json:"dns,omitempty"`
	MTU      int      `json:"mtu,omitempty"`
}

// Stack is the configuration of a userspace TCP/IP stack.
type Stack struct {
	// LAN is LANAllow or LANDeny ("" means deny): whether private ranges
	// (RFC 1918, carrier-grade NAT, IPv6 unique local) may be reached. The
	// host's loopback and own addresses, link-local, cloud metadata and
	// multicast never may.
	LAN string `json:"lan"`
}

// Values of Stack.LAN. Deny is the default: what stands beside the host (a
// router's page, a colleague's database, a printer) trusts its neighbours,
// and a guest that runs unknown code is none.
const (
	LANAllow = "allow"
	LANDeny  = "deny"
)
