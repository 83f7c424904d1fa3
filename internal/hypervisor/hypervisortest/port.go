package hypervisortest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/hypervisor"
)

// Port speaks the tiny guest's line protocol.
type Port struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	next int
}

// Dial connects to a machine's endpoint. The guest need not run yet.
func Dial(t testing.TB, e hypervisor.Endpoint) *Port {
	t.Helper()
	conn, err := net.Dial("unix", e.Path)
	if err != nil {
		t.Fatalf("dial the agent: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &Port{t: t, conn: conn, in: bufio.NewReader(conn)}
	if e.Kind == hypervisor.EndpointVsock {
		p.connect(e.Port)
	}
	return p
}

// connect does the handshake of a vsock endpoint.
func (p *Port) connect(port uint32) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.conn, "CONNECT %d\n", port); err != nil {
		p.t.Fatal(err)
	}
	if line, err := p.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		p.t.Fatalf("vsock handshake: %q, %v", line, err)
	}
}

// Close ends the connection.
func (p *Port) Close() { p.conn.Close() }

// Try asks once and gives the answer, or why there was none within limit.
func (p *Port) Try(limit time.Duration, request string) (string, error) {
	p.next++
	id := strconv.Itoa(p.next)
	if err := p.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(p.conn, "%s %s\n", id, request); err != nil {
		return "", err
	}
	for {
		line, err := p.in.ReadString('\n')
		if err != nil {
			return "", err
		}
		// an earlier request's answer may come first
		if rest, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), id+" "); ok {
			return rest, nil
		}
	}
}

// Ask asks a guest that must answer.
func (p *Port) Ask(request string) string {
	p.t.Helper()
	got, err := p.Try(answerLimit, request)
	if err != nil {
		p.t.Fatalf("the guest does not answer %q: %v", request, err)
	}
	return got
}

// Expect asks and compares.
func (p *Port) Expect(request, want string) {
	p.t.Helper()
	if got := p.Ask(request); got != want {
		p.t.Errorf("%s: the guest says %q, want %q", request, got, want)
	}
}

// Number asks for a number.
func (p *Port) Number(request string) int64 {
	p.t.Helper()
	got := p.Ask(request)
	n, err := strconv.ParseInt(got, 10, 64)
	if err != nil {
		p.t.Fatalf("%s: the guest says %q, want a number", request, got)
	}
	return n
}

// answerLimit is for a booted guest on a busy host.
const answerLimit = 30 * time.Second

// console stands in for the shim: it listens on a socket and keeps at most
// limit bytes of what comes, reading on.
type console struct {
	listener net.Listener
	done     chan struct{}
	kept     []byte
	total    int64
}

func newConsole(t testing.TB, path string, limit int) *console {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := &console{listener: l, done: make(chan struct{})}
	go c.read(limit)
	t.Cleanup(func() {
		l.Close()
		<-c.done
		if t.Failed() {
			t.Logf("the console ends with %q", c.kept[max(0, len(c.kept)-6000):])
		}
	})
	return c
}

func (c *console) read(limit int) {
	defer close(c.done)
	conn, err := c.listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		c.total += int64(n)
		if room := limit - len(c.kept); room > 0 {
			c.kept = append(c.kept, buf[:min(n, room)]...)
		}
		if err != nil {
			return
		}
	}
}

// text waits for the console's end, which is the machine's.
func (c *console) text(ctx context.Context, t testing.TB) (string, int64) {
	t.Helper()
	select {
	case <-c.done:
	case <-ctx.Done():
		t.Fatal("the console does not end with its machine")
	}
	return string(c.kept), c.total
}
