package userspace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routedLocally asks the kernel's routing tables where a packet to addr would
// go. An interface list does not tell all: a "local" route may cover a whole
// range without any interface having an address of it. No route at all is not
// local; the dial will say so.
func routedLocally(addr netip.Addr) (bool, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers in the call itself; the limit is for a defect.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return false, fmt.Errorf("set netlink timeout: %w", err)
	}
	if err := unix.Sendto(fd, routeRequest(addr), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("ask netlink: %w", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return false, fmt.Errorf("read netlink: %w", err)
	}
	kind, err := routeType(buf[:n])
	if err != nil {
		return false, err
	}
	switch kind {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return true, nil
	}
	return false, nil
}

func routeRequest(addr netip.Addr) []byte {
	ip, family := addr.AsSlice(), byte(unix.AF_INET)
	if addr.Is6() {
		family = unix.AF_INET6
	}
	attr := unix.SizeofRtAttr + len(ip)
	size := unix.SizeofNlMsghdr + unix.SizeofRtMsg + attr
	b := make([]byte, size)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(size))
	ne.PutUint16(b[4:], unix.RTM_GETROUTE)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], 1)
	rt := b[unix.SizeofNlMsghdr:]
	rt[0] = family
	rt[1] = byte(len(ip) * 8)
	at := rt[unix.SizeofRtMsg:]
	ne.PutUint16(at[0:], uint16(attr))
	ne.PutUint16(at[2:], unix.RTA_DST)
	copy(at[unix.SizeofRtAttr:], ip)
	return b
}

// routeType reads the answer; an unreachable destination is RTN_UNREACHABLE.
func routeType(b []byte) (byte, error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, errors.New("short netlink answer")
	}
	body := b[unix.SizeofNlMsghdr:]
	switch t := binary.NativeEndian.Uint16(b[4:]); t {
	case unix.NLMSG_ERROR:
		if len(body) < 4 {
			return 0, errors.New("short netlink error")
		}
		switch e := unix.Errno(-int32(binary.NativeEndian.Uint32(body))); e {
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH:
			return unix.RTN_UNREACHABLE, nil
		default:
			return 0, fmt.Errorf("netlink: %w", e)
		}
	case unix.RTM_NEWROUTE:
		if len(body) < unix.SizeofRtMsg {
			return 0, errors.New("short netlink route")
		}
		return body[7], nil
	default:
		return 0, fmt.Errorf("unexpected netlink message %d", t)
	}
}
