package userspace

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpIdle ends a flow in which nothing moved; the usual limit of a NAT.
const udpIdle = 60 * time.Second

// handleUDP answers the first datagram of a flow. False makes the stack say
// "port unreachable" to the guest.
func (s *Stack) handleUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	flow := Flow{Proto: "udp", Dst: addrPort(id.LocalAddress, id.LocalPort)}
	if !s.allow(flow) {
		return false
	}
	if s.udpOpen.Add(1) > maxUDP {
		s.udpOpen.Add(-1)
		s.failed.Add(1)
		return true // silence: a flood is owed no answers
	}
	// No packet is sent by this, so it does not wait for the network.
	host, err := s.opts.Dial(s.ctx, "udp", flow.Dst)
	if err != nil {
		s.udpOpen.Add(-1)
		s.failed.Add(1)
		return false
	}
	wq := &waiter.Queue{}
	ep, terr := r.CreateEndpoint(wq)
	if terr != nil {
		s.udpOpen.Add(-1)
		_ = host.Close() // nothing was sent on it
		return false
	}
	s.udpTotal.Add(1)
	started := s.own(func() {
		defer s.udpOpen.Add(-1)
		s.spliceUDP(host, ep, wq)
	})
	if !started {
		ep.Close()
		_ = host.Close() // nothing was sent on it
	}
	return true
}

// spliceUDP moves datagrams both ways until nothing moved for udpIdle.
func (s *Stack) spliceUDP(host net.Conn, ep tcpip.Endpoint, wq *waiter.Queue) {
	defer host.Close()
	guest := gonet.NewUDPConn(wq, ep)
	defer guest.Close()
	ready, forget := readable(wq)
	defer forget()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = host.SetDeadline(time.Unix(1, 0)) // wakes a read under way
	})
	defer stop()

	var moved atomic.Bool
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		s.hostDatagrams(ctx, host, guest, &moved)
	}()
	for {
		err := fromGuest(ctx, ep, ready, func(b []byte) error {
			moved.Store(true)
			s.bytesOut.Add(uint64(len(b)))
			_, err := host.Write(b)
			return err
		})
		if err != nil {
			break
		}
	}
	cancel()
	<-back
}

// hostDatagrams moves what comes back, and ends when nothing moved either way
// for udpIdle.
func (s *Stack) hostDatagrams(ctx context.Context, host net.Conn, guest *gonet.UDPConn, moved *atomic.Bool) {
	for {
		// Set before ctx is looked at: whoever ends ctx sets the deadline
		// after, so one of the two is always seen.
		if err := host.SetReadDeadline(time.Now().Add(udpIdle)); err != nil || ctx.Err() != nil {
			return
		}
		err := fromHost(host, false, func(b []byte) error {
			moved.Store(true)
			s.bytesIn.Add(uint64(len(b)))
			_, err := guest.Write(b)
			return err
		})
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && moved.Swap(false):
		default:
			return
		}
	}
}
