package agent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
)

func TestEveryUnaryMethodAnswers(t *testing.T) {
	g := guesttest.Unix(t)
	c := dial(t, g)
	ctx := t.Context()
	if h := c.Info(); h.State != "alone" || h.HasInit || h.Version != wire.Version {
		t.Errorf("%+v", h)
	}
	if r, err := c.Identity(ctx, wire.Identity{VM: "abc", Hostname: "web", Env: []wire.KV{{Key: "A", Value: "b"}}}); err != nil || len(r.Steps) != 1 {
		t.Error(r, err)
	}
	if id := g.System.LastIdentity(); id.VM != "abc" || id.Hostname != "web" || id.Env[0].Value != "b" {
		t.Errorf("%+v", id)
	}
	if s, err := c.Stats(ctx); err != nil || s.Processes != 1 {
		t.Error(s, err)
	}
	if r, err := c.Wait(ctx, wire.WaitRequest{For: "system"}); err != nil || r.State != "alone" {
		t.Error(r, err)
	}
	if _, err := c.Wait(ctx, wire.WaitRequest{For: "godot"}); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
	if r, err := c.Prepare(ctx, wire.PrepareRequest{Rehearse: true}); err != nil || r.Clock != "host" {
		t.Error(r, err)
	}
	for name, f := range map[string]func() error{
		"handover": func() error { return c.Handover(ctx) },
		"clock":    func() error { return c.Clock(ctx, wire.ClockRequest{UnixNS: 1}) },
		"grow":     func() error { return c.Grow(ctx, wire.GrowRequest{Disks: []string{"work"}}) },
		"shutdown": func() error { return c.Shutdown(ctx, wire.ShutdownRequest{TimeoutMS: 1}) },
		"sync":     func() error { return c.Sync(ctx) },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// rawSession is a host that says what it likes.
func rawSession(t *testing.T, g *guesttest.Guest) *mux.Session {
	t.Helper()
	conn, err := link.Dial(t.Context(), g.Endpoint.Kind, g.Endpoint.Path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := mux.Host(conn)
	t.Cleanup(func() { s.Close() })
	return s
}

func ask(t *testing.T, s *mux.Session, kind wire.Kind, method wire.Method, m wire.Message) wire.Error {
	t.Helper()
	st, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b, _ := wire.AppendMessage(nil, kind, &wire.Request{Method: method, Message: m})
	st.WriteLast(b)
	got, body, err := wire.ReadMessage(st)
	if err != nil {
		t.Fatal(err)
	}
	var e wire.Error
	if got == wire.KindError {
		if err := wire.Decode(body, &e); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func TestAHostThatErrsIsTold(t *testing.T) {
	g := guesttest.Unix(t)
	s := rawSession(t, g)
	if e := ask(t, s, wire.KindRequest, wire.MethodStats, &wire.Empty{}); e.Code != "no_hello" {
		t.Errorf("without a hello: %+v", e)
	}
	if e := ask(t, s, wire.KindRequest, wire.MethodHello, &wire.HelloRequest{Version: 99, MinVersion: 98, Nonce: make([]byte, 32)}); e.Code != "agent_version" {
		t.Errorf("another version: %+v", e)
	}
	if e := ask(t, s, wire.KindRequest, wire.MethodHello, &wire.HelloRequest{Version: 99, MinVersion: 1, Nonce: make([]byte, 32)}); e.Code != "" {
		t.Errorf("a newer version that speaks ours: %+v", e)
	}
	if e := ask(t, s, wire.KindRequest, "dance", &wire.Empty{}); e.Code != "unknown_method" || e.Kind != string(errs.Unsupported) {
		t.Errorf("an unknown method: %+v", e)
	}
	if e := ask(t, s, wire.KindItem, wire.MethodStats, &wire.Empty{}); e.Code != "bad_request" {
		t.Errorf("no request: %+v", e)
	}
	if e := ask(t, s, wire.KindRequest, wire.MethodExec, &wire.ExecRequest{Argv: []string{"true"}}); e.Code != "bad_request" {
		t.Errorf("no id: %+v", e)
	}
}

func TestDialling(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.Listen("unix", filepath.Join(t.TempDir(), "u"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{l, u} {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			all, _ := io.ReadAll(conn) // until the other half is closed
			conn.Write(append(all, " and back"...))
		}()
		conn, err := c.DialGuest(t.Context(), l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("there"))
		conn.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "there and back" {
			t.Errorf("%s: %q %v", l.Addr().Network(), got, err)
		}
		conn.Close()
		l.Close()
	}
	for _, x := range []struct {
		network, address string
		kind             errs.Kind
		code             string
	}{
		{"tcp", l.Addr().String(), errs.Unavailable, "guest_refused"},
		{"unix", "/no/such/socket", errs.NotFound, "no_socket"},
		{"udp", "127.0.0.1:1", errs.Invalid, "bad_address"},
		{"agent", "telnet", errs.Invalid, "bad_address"},
	} {
		if _, err := c.DialGuest(t.Context(), x.network, x.address); errs.KindOf(err) != x.kind || errs.CodeOf(err) != x.code {
			t.Errorf("%s %s: %v", x.network, x.address, err)
		}
	}
	ssh, err := c.DialGuest(t.Context(), "agent", "ssh")
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()
	if n, err := ssh.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("an ssh server that is not there: %d, %v", n, err)
	}
}

// slow is a System one of whose calls ends only with its context.
type slow struct {
	*agent.Hosted
	began chan struct{}
	ended chan error
}

func (s slow) Sync(ctx context.Context) error {
	s.began <- struct{}{}
	<-ctx.Done()
	s.ended <- ctx.Err()
	return ctx.Err()
}

func TestACallThatIsGivenUpEndsInTheGuest(t *testing.T) {
	sys := slow{agent.NewHosted([]byte("token"), nil), make(chan struct{}, 2), make(chan error, 2)}
	server := agent.NewServer(sys, agent.Options{NoCgroup: true})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	c, err := guest.Dial(t.Context(), hypervisor.Endpoint{Kind: link.Unix, Path: path}, []byte("token"), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := c.Sync(short); errs.KindOf(err) != errs.Timeout {
		t.Error(err)
	}
	<-sys.began
	<-sys.ended
	lost := make(chan error, 1)
	go func() { lost <- c.Sync(t.Context()) }()
	<-sys.began
	c.Close()
	<-sys.ended
	if err := <-lost; !errors.Is(err, guest.ErrLinkLost) {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	server.Close()
}
