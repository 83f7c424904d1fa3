package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var token = []byte("the token of this test, 32 bytes")

// fake serves every connection to a socket with f, until the test ends.
func fake(t *testing.T, kind string, f func(net.Conn)) hypervisor.Endpoint {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return hypervisor.Endpoint{Kind: kind, Path: path}
}

// liar is the guest's end of a link, with which a test does what it likes.
type liar struct {
	conn *link.Conn
	raw  net.Conn
}

func (l *liar) frame(kind, flags uint8, stream uint32, payload []byte) error {
	return l.conn.Write(l.conn.Append(nil, link.Frame{Type: kind, Flags: flags, Stream: stream, Payload: payload}))
}

const (
	data, credit, reset, stop = 1, 2, 3, 4
	open, fin                 = 1, 2
)

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// hello answers the first stream as an honest agent would.
func (l *liar) hello() bool {
	var f link.Frame
	if l.conn.Read(&f) != nil {
		return false
	}
	_, body, err := wire.ReadMessage(bytes.NewReader(f.Payload))
	var req wire.Request
	var h wire.HelloRequest
	if err != nil || wire.Decode(body, &req) != nil || wire.Decode(req.Body, &h) != nil {
		return false
	}
	b, _ := wire.AppendMessage(nil, wire.KindReply, &wire.HelloReply{Version: wire.Version, State: "alone", Proof: wire.Proof(token, h.Nonce)})
	return l.frame(data, fin, f.Stream, b) == nil
}

// lying is a fake whose link is in step and, with greeted, who said hello.
func lying(t *testing.T, greeted bool, f func(*liar)) hypervisor.Endpoint {
	return fake(t, link.Unix, func(c net.Conn) {
		conn, err := link.NewAcceptor(c, false).Accept()
		if err != nil {
			return
		}
		l := &liar{conn: conn, raw: c}
		if greeted && !l.hello() {
			return
		}
		f(l)
		io.Copy(io.Discard, c)
	})
}

var quick = guest.Options{CallTimeout: time.Second, StallTimeout: 150 * time.Millisecond}

func TestWhateverAnAgentDoesIsATypedErrorInTime(t *testing.T) {
	item := func(m wire.Message) []byte {
		b, _ := wire.AppendMessage(nil, wire.KindItem, m)
		return b
	}
	for name, x := range map[string]struct {
		do   func(*liar)
		want error     // in the chain, or
		kind errs.Kind // of the error
	}{
		"opens a stream":    {func(l *liar) { l.frame(data, open, 9, []byte("x")) }, guest.ErrMisbehaved, ""},
		"wrong id":          {func(l *liar) { l.frame(data, 0, 77, []byte("x")) }, guest.ErrMisbehaved, ""},
		"stream zero":       {func(l *liar) { l.frame(credit, 0, 0, number(1)) }, guest.ErrMisbehaved, ""},
		"unknown frame":     {func(l *liar) { l.frame(99, 0, 2, nil) }, guest.ErrMisbehaved, ""},
		"empty frame":       {func(l *liar) { l.frame(data, 0, 2, nil) }, guest.ErrMisbehaved, ""},
		"beyond the window": {func(l *liar) { l.frame(data, 0, 2, make([]byte, 4097)) }, guest.ErrMisbehaved, ""},
		"data after fin":    {func(l *liar) { l.frame(data, fin, 2, []byte("x")); l.frame(data, 0, 2, []byte("x")) }, guest.ErrMisbehaved, ""},
		"credit of nothing": {func(l *liar) { l.frame(credit, 0, 2, number(0)) }, guest.ErrMisbehaved, ""},
		"credit too large":  {func(l *liar) { l.frame(credit, 0, 2, number(1<<31)) }, guest.ErrMisbehaved, ""},
		"credit too often": {func(l *liar) {
			for range 100 {
				l.frame(credit, 0, 2, number(64<<10))
			}
		}, guest.ErrMisbehaved, ""},
		"odd credit": {func(l *liar) { l.frame(credit, 0, 2, []byte{1}) }, guest.ErrMisbehaved, ""},
		"two stops":  {func(l *liar) { l.frame(stop, 0, 2, nil); l.frame(stop, 0, 2, nil) }, guest.ErrMisbehaved, ""},
		"reset":      {func(l *liar) { l.frame(reset, 0, 2, number(2)) }, nil, errs.Unavailable},
		"huge frame": {func(l *liar) { l.raw.Write([]byte{0xb7, 0xc3, 1, 0, 0, 0, 0, 2, 0x7f, 0xff, 0xff, 0xff}) }, guest.ErrMisbehaved, ""},
		"no frame":   {func(l *liar) { l.raw.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) }, guest.ErrMisbehaved, ""},
		"bad trailer": {func(l *liar) {
			l.raw.Write(append([]byte{0xb7, 0xc3, 1, 0, 0, 0, 0, 2, 0, 0, 0, 1}, make([]byte, 9)...))
		}, guest.ErrMisbehaved, ""},
		"closes within": {func(l *liar) { l.raw.Write([]byte{0xb7, 0xc3, 1}); l.raw.Close() }, guest.ErrLinkLost, ""},
		"closes":        {func(l *liar) { l.raw.Close() }, guest.ErrLinkLost, ""},
		"stops within":  {func(l *liar) { l.raw.Write([]byte{0xb7, 0xc3, 1}) }, guest.ErrLinkLost, ""},
		"huge message":  {func(l *liar) { l.frame(data, 0, 2, []byte{2, 0xff, 0xff, 0xff, 0xff}) }, guest.ErrMisbehaved, ""},
		"unknown kind":  {func(l *liar) { l.frame(data, 0, 2, []byte{77, 0, 0, 0, 0}) }, guest.ErrMisbehaved, ""},
		"cut message":   {func(l *liar) { l.frame(data, fin, 2, []byte{2, 0, 0, 1, 0, 'x'}) }, guest.ErrMisbehaved, ""},
		"no answer":     {func(l *liar) { l.frame(data, fin, 2, nil) }, guest.ErrMisbehaved, ""},
		"malformed":     {func(l *liar) { l.frame(data, fin, 2, []byte{2, 0, 0, 0, 2, 0xff, 0xff}) }, guest.ErrMisbehaved, ""},
		"item":          {func(l *liar) { l.frame(data, fin, 2, item(&wire.Stats{})) }, guest.ErrMisbehaved, ""},
		"silence":       {func(l *liar) {}, nil, errs.Timeout},
		"drips":         {func(l *liar) { drip(l.raw) }, guest.ErrLinkLost, ""},
		"never reads":   {func(l *liar) {}, nil, errs.Timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ep := lying(t, true, func(l *liar) {
				var f link.Frame
				if name == "never reads" {
					<-t.Context().Done()
					return
				}
				if l.conn.Read(&f) == nil {
					x.do(l)
				}
			})
			c, err := guest.Dial(t.Context(), ep, token, quick)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			begin := time.Now()
			_, err = c.Stats(t.Context())
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
			if x.want != nil && !errors.Is(err, x.want) || x.kind != "" && errs.KindOf(err) != x.kind {
				t.Errorf("%v (%s)", err, errs.KindOf(err))
			}
			if errs.KindOf(err) == errs.Internal || errs.KindOf(err) == "" {
				t.Errorf("no kind: %v", err)
			}
		})
	}
}

// drip sends a frame at ten bytes a second.
func drip(w io.Writer) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	b := append([]byte{0xb7, 0xc3, 1, 0, 0, 0, 0, 2, 0, 0, 0x10, 0}, make([]byte, 4096)...)
	for i := range b {
		if _, err := w.Write(b[i : i+1]); err != nil {
			return
		}
		<-tick.C
	}
}

func TestACommandsLiesAreErrors(t *testing.T) {
	chunk := func(off uint64, s string) *wire.Chunk { return &wire.Chunk{Off: off, Data: []byte(s)} }
	for name, outs := range map[string][]*wire.ExecOutput{
		"hole":        {{Stdout: chunk(0, "a")}, {Stdout: chunk(7, "b")}},
		"repeat":      {{Stderr: chunk(0, "a")}, {Stderr: chunk(0, "a")}},
		"two things":  {{Stdout: chunk(0, "a"), Stderr: chunk(0, "a")}},
		"nothing":     {{}},
		"ends before": {{Stdout: chunk(0, "a")}},
	} {
		t.Run(name, func(t *testing.T) {
			ep := lying(t, true, func(l *liar) {
				var f link.Frame
				if l.conn.Read(&f) != nil {
					return
				}
				var b []byte
				for _, o := range outs {
					b, _ = wire.AppendMessage(b, wire.KindItem, o)
				}
				l.frame(data, fin, f.Stream, b)
			})
			c, err := guest.Dial(t.Context(), ep, token, quick)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"x"}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for err == nil {
				_, err = p.Recv()
			}
			if !errors.Is(err, guest.ErrMisbehaved) {
				t.Error(err)
			}
		})
	}
}

func TestFloodsCostNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	grown := func() int64 {
		runtime.ReadMemStats(&after)
		return int64(after.Sys) - int64(before.Sys)
	}
	t.Run("before the ack", func(t *testing.T) {
		ep := fake(t, link.Serial, func(c net.Conn) {
			b := bytes.Repeat([]byte("\xb7SACK\x00banger\x01noise and more noise"), 2000)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
		if _, err := guest.Dial(t.Context(), ep, token, quick); !errors.Is(err, guest.ErrMisbehaved) {
			t.Error(err)
		}
	})
	t.Run("a million streams", func(t *testing.T) {
		ep := lying(t, true, func(l *liar) {
			for i := range uint32(1_000_000) {
				if l.frame(data, open, i, []byte("x")) != nil {
					return
				}
			}
		})
		c, err := guest.Dial(t.Context(), ep, token, quick)
		if err == nil {
			defer c.Close()
			<-c.Done()
			err = c.Err()
		}
		if !errors.Is(err, guest.ErrMisbehaved) {
			t.Error(err)
		}
	})
	t.Run("late control for ended streams", func(t *testing.T) {
		ep := lying(t, true, func(l *liar) {
			for range 1_000_000 {
				if l.frame(credit, 0, 1, number(1)) != nil {
					return
				}
			}
		})
		c, err := guest.Dial(t.Context(), ep, token, quick)
		if err == nil {
			defer c.Close()
			<-c.Done()
			err = c.Err()
		}
		if !errors.Is(err, guest.ErrMisbehaved) {
			t.Error(err)
		}
	})
	t.Run("output that nobody reads", func(t *testing.T) {
		ep := lying(t, true, func(l *liar) {
			var f link.Frame
			if l.conn.Read(&f) != nil {
				return
			}
			l.frame(data, 0, f.Stream, make([]byte, 4096))
			l.frame(data, 0, f.Stream, make([]byte, 4096))
		})
		c, err := guest.Dial(t.Context(), ep, token, quick)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		<-c.Done()
		if !errors.Is(c.Err(), guest.ErrMisbehaved) {
			t.Error(c.Err())
		}
	})
	if g := grown(); g > 32<<20 {
		t.Errorf("memory grew by %d MiB", g>>20)
	}
}

func TestAWriterToAGuestThatNeverReadsCanGiveUp(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	ep := lying(t, true, func(l *liar) { <-hold })
	c, err := guest.Dial(t.Context(), ep, token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.TarIn(ctx, wire.TarInRequest{Dir: "/x"}, bytes.NewReader(make([]byte, 10<<20))); errs.KindOf(err) != errs.Timeout {
		t.Error(err)
	}
}

func TestSwappedSocketsAreNoticed(t *testing.T) {
	a, b := guesttest.Unix(t), guesttest.Serial(t)
	for _, x := range []struct {
		ep    hypervisor.Endpoint
		token []byte
	}{{a.Endpoint, b.Token}, {b.Endpoint, a.Token}} {
		if _, err := guest.Dial(t.Context(), x.ep, x.token, guest.Options{}); !errors.Is(err, guest.ErrWrongGuest) {
			t.Error(err)
		}
	}
	c, err := guest.Dial(t.Context(), a.Endpoint, a.Token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next := bytes.Repeat([]byte("n"), 32)
	if _, err := c.Identity(t.Context(), wire.Identity{Token: next}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Errorf("after a new token: %v", err)
	}
}

func TestOneBadGuestDoesNotDisturbTheOthers(t *testing.T) {
	bad := lying(t, true, func(l *liar) {
		for i := uint32(1); l.frame(data, open, i, make([]byte, 4096)) == nil; i++ {
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var floods atomic.Int32
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		for ctx.Err() == nil {
			c, err := guest.Dial(ctx, bad, token, quick)
			if err == nil {
				<-c.Done()
				c.Close()
			}
			floods.Add(1)
		}
	})
	const good, calls = 10, 50
	took := make([]time.Duration, good*calls)
	var all sync.WaitGroup
	for i := range good {
		g := guesttest.Unix(t)
		c, err := guest.Dial(t.Context(), g.Endpoint, g.Token, guest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all.Go(func() {
			for k := range calls {
				begin := time.Now()
				if _, err := c.Stats(t.Context()); err != nil {
					t.Error(err)
				}
				took[i*calls+k] = time.Since(begin)
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("p99 of %d calls beside %d floods: %v", len(took), floods.Load(), p99)
	if p99 > time.Second {
		t.Errorf("p99 is %v", p99)
	}
}

func TestErrorsOfAGuestAreHarmless(t *testing.T) {
	ep := lying(t, true, func(l *liar) {
		var f link.Frame
		if l.conn.Read(&f) != nil {
			return
		}
		b, _ := wire.AppendMessage(nil, wire.KindError, &wire.Error{
			Kind: "made-up", Code: "BAD\x1bcode", Message: "a\x1b]52;c;evil\a\r\nb\u202ec" + strings.Repeat("x", 3000),
		})
		l.frame(data, fin, f.Stream, b)
	})
	c, err := guest.Dial(t.Context(), ep, token, quick)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Stats(t.Context())
	if errs.KindOf(err) != errs.Internal || errs.CodeOf(err) != "guest_internal" {
		t.Errorf("%s %s", errs.KindOf(err), errs.CodeOf(err))
	}
	if strings.ContainsAny(err.Error(), "\x1b\a\r\n\u202e") || !strings.HasPrefix(err.Error(), "a]52;c;evil b") {
		t.Errorf("%q", err)
	}
}

func TestTheGreetingIsBounded(t *testing.T) {
	sizes := make(chan int, 1)
	for name, x := range map[string]struct {
		answer string
		want   error
	}{
		"no newline": {strings.Repeat("x", 10<<20), link.ErrGreeting},
		"no OK":      {"HELLO 3\n", link.ErrGreeting},
		"no number":  {"OK three\n", link.ErrGreeting},
		"too large":  {"OK 99999999999\n", link.ErrGreeting},
	} {
		ep := fake(t, link.Vsock, func(c net.Conn) {
			io.ReadAtLeast(c, make([]byte, 64), 8)
			n, _ := c.Write([]byte(x.answer))
			select {
			case sizes <- n:
			default:
			}
		})
		ep.Port = 1024
		if _, err := guest.Dial(t.Context(), ep, token, quick); !errors.Is(err, x.want) || errs.KindOf(err) != errs.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAVsockGuestThatBootsIsWaitedFor(t *testing.T) {
	real := guesttest.Unix(t)
	var tries atomic.Int32
	ep := fake(t, link.Vsock, func(c net.Conn) {
		line := make([]byte, 64)
		n, _ := c.Read(line)
		if tries.Add(1) < 4 {
			return // Firecracker closes while nobody listens in the guest
		}
		if string(line[:n]) != "CONNECT 1024\n" {
			t.Errorf("asked %q", line[:n])
		}
		io.WriteString(c, "OK 1073741824\n")
		inner, err := net.Dial("unix", real.Endpoint.Path)
		if err != nil {
			t.Error(err)
			return
		}
		defer inner.Close()
		go func() {
			io.Copy(inner, c)
			inner.Close()
		}()
		io.Copy(c, inner)
	})
	c, err := guest.Dial(t.Context(), ep, real.Token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Stats(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, ep := range []hypervisor.Endpoint{
		{Kind: link.Unix, Path: filepath.Join(t.TempDir(), "none")},
		fake(t, link.Serial, func(c net.Conn) { io.Copy(io.Discard, c) }),
	} {
		if _, err := guest.Dial(ctx, ep, token, guest.Options{}); errs.KindOf(err) != errs.Timeout {
			t.Errorf("%v (%s)", err, errs.KindOf(err))
		}
	}
	if _, err := guest.Dial(t.Context(), hypervisor.Endpoint{Kind: "pigeon", Path: "x"}, token, guest.Options{}); err == nil {
		t.Error("dialled a pigeon")
	}
}
