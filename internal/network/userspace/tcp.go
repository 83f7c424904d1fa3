package userspace

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Keepalive towards the guest: a guest that was reset or restored from a
// template no longer knows its connections and says so when asked.
const (
	guestKeepIdle     = 2 * time.Minute
	guestKeepInterval = 30 * time.Second
	guestKeepCount    = 4
)

// A few connections may have large windows, thousands may not: beyond
// fewConns a connection's buffers are bounded to smallBuf.
const (
	fewConns = 64
	smallBuf = 128 << 10
)

// handleTCP answers one SYN, in a goroutine that the forwarder started.
func (s *Stack) handleTCP(r *tcp.ForwarderRequest) {
	if !s.enter() {
		r.Complete(true)
		return
	}
	defer s.wg.Done()
	s.forwardTCP(r)
}

// forwardTCP accepts the guest's connection only once the host's stands, so
// that a refused or dead destination looks like one.
func (s *Stack) forwardTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	flow := Flow{Proto: "tcp", Dst: addrPort(id.LocalAddress, id.LocalPort)}
	if !s.allow(flow) {
		r.Complete(true)
		return
	}
	open := s.tcpOpen.Add(1)
	defer s.tcpOpen.Add(-1)
	if open > maxTCP {
		s.failed.Add(1)
		r.Complete(true)
		return
	}
	s.tcpTotal.Add(1)
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	host, err := s.opts.Dial(ctx, "tcp", flow.Dst)
	cancel()
	if err != nil {
		s.failed.Add(1)
		r.Complete(true)
		return
	}
	defer host.Close()
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	tuneTCP(ep, open)
	s.spliceTCP(host, ep, &wq)
}

func tuneTCP(ep tcpip.Endpoint, open int64) {
	so := ep.SocketOptions()
	so.SetKeepAlive(true)
	idle := tcpip.KeepaliveIdleOption(guestKeepIdle)
	every := tcpip.KeepaliveIntervalOption(guestKeepInterval)
	// An option that is not taken leaves the default: nothing to do.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&every)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, guestKeepCount)
	if open > fewConns {
		so.SetSendBufferSize(smallBuf, true)
		so.SetReceiveBufferSize(smallBuf, true)
	}
}

// spliceTCP moves bytes both ways until both are at their end, or one fails.
// The end of one direction is passed on and leaves the other open.
func (s *Stack) spliceTCP(host net.Conn, ep tcpip.Endpoint, wq *waiter.Queue) {
	guest := gonet.NewTCPConn(wq, ep)
	ready, forget := readable(wq)
	defer forget()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	// Whoever fails first wakes the other by ending both connections.
	stop := context.AfterFunc(ctx, func() {
		ep.Abort()
		_ = host.SetDeadline(time.Unix(1, 0)) // wakes a read or write under way
	})
	defer stop()

	back := make(chan struct{})
	go func() {
		defer close(back)
		if err := s.hostToGuest(host, guest); err != nil {
			cancel()
		}
	}()
	if err := s.guestToHost(ctx, ep, ready, host); err != nil {
		cancel()
	}
	<-back
	if ctx.Err() == nil {
		ep.Close()
	}
}

func (s *Stack) guestToHost(ctx context.Context, ep tcpip.Endpoint, ready <-chan struct{}, host net.Conn) error {
	for {
		err := fromGuest(ctx, ep, ready, func(b []byte) error {
			n, err := host.Write(b)
			s.bytesOut.Add(uint64(n))
			return err
		})
		if errors.Is(err, io.EOF) {
			return closeWrite(host)
		}
		if err != nil {
			return err
		}
	}
}

func (s *Stack) hostToGuest(host net.Conn, guest *gonet.TCPConn) error {
	for {
		err := fromHost(host, true, func(b []byte) error {
			n, err := guest.Write(b)
			s.bytesIn.Add(uint64(n))
			return err
		})
		if errors.Is(err, io.EOF) {
			return guest.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
