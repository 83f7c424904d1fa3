// Package guesttest has what tests of guests share: a hosted agent behind a
// Unix socket or behind a pipe that behaves like a virtio-serial port, and the
// contract suite that every kind of endpoint passes. It is for tests only.
package guesttest

import (
	"context"
	"crypto/rand"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Guest is a hosted agent under test.
type Guest struct {
	Endpoint hypervisor.Endpoint
	Token    []byte
	Server   *agent.Server
	System   *agent.Hosted
}

// Unix runs a hosted agent behind a plain Unix socket until the test ends.
func Unix(t testing.TB, with ...func(*agent.Options)) *Guest {
	t.Helper()
	g := newGuest(link.Unix, filepath.Join(t.TempDir(), "agent.sock"), with...)
	l, err := net.Listen("unix", g.Endpoint.Path)
	if err != nil {
		t.Fatal(err)
	}
	g.serve(t, func(ctx context.Context) error { return g.Server.Serve(ctx, l) })
	return g
}

// Serial runs a hosted agent behind a simulated virtio-serial port: one pipe
// that stays open towards the agent while hosts come and go, one at a time,
// and that keeps what it has not delivered.
func Serial(t testing.TB) *Guest {
	t.Helper()
	g := newGuest(link.Serial, filepath.Join(t.TempDir(), "serial.sock"))
	port := newPort(t, g.Endpoint.Path)
	g.serve(t, func(ctx context.Context) error { return g.Server.ServePort(ctx, port) })
	return g
}

func newGuest(kind, path string, with ...func(*agent.Options)) *Guest {
	token := make([]byte, 32)
	rand.Read(token)
	sys := agent.NewHosted(token, nil)
	opts := agent.Options{NoCgroup: true}
	for _, f := range with {
		f(&opts)
	}
	return &Guest{
		Endpoint: hypervisor.Endpoint{Kind: kind, Path: path},
		Token:    token, System: sys, Server: agent.NewServer(sys, opts),
	}
}

func (g *Guest) serve(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := f(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		g.Server.Close()
	})
}

// newPort listens for hosts at path and gives the guest's end of the pipe.
func newPort(t testing.TB, path string) net.Conn {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	inner, guest := pair(t)
	var running sync.WaitGroup
	running.Go(func() { proxy(l, inner) })
	t.Cleanup(func() {
		l.Close()
		inner.Close()
		running.Wait()
	})
	return guest
}

// pair is a connected pair of Unix sockets.
func pair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pair.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// proxy joins one host after the other to the guest's pipe. What a host left
// half sent stays sent; what the guest sends while no host is there waits, or
// was lost with the host that went.
func proxy(l net.Listener, guest net.Conn) {
	var mu sync.Mutex
	var host net.Conn
	there := sync.NewCond(&mu)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		buf := make([]byte, 8<<10)
		for {
			n, err := guest.Read(buf)
			mu.Lock()
			for host == nil && err == nil {
				there.Wait()
			}
			to := host
			mu.Unlock()
			if err != nil {
				return
			}
			to.Write(buf[:n])
		}
	})
	for {
		c, err := l.Accept()
		mu.Lock()
		host = c
		if err != nil {
			host = guest // let the other loop see its end
			guest.Close()
		}
		there.Broadcast()
		mu.Unlock()
		if err != nil {
			return
		}
		buf := make([]byte, 8<<10)
		for {
			n, err := c.Read(buf)
			if n > 0 {
				guest.Write(buf[:n])
			}
			if err != nil {
				break
			}
		}
		mu.Lock()
		host = nil
		mu.Unlock()
		c.Close()
	}
}
