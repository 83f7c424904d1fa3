package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/agent"
	guestlink "github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// cutter stands between the daemon and a real agent and cuts the line after a
// number of bytes that differs each time.
type cutter struct {
	net.Listener
	to   string
	mu   sync.Mutex
	cuts int
	rnd  *rand.Rand
}

func (c *cutter) serve() {
	for {
		host, err := c.Accept()
		if err != nil {
			return
		}
		guest, err := net.Dial("unix", c.to)
		if err != nil {
			host.Close()
			continue
		}
		c.mu.Lock()
		c.cuts++
		in, out := 60_000+c.rnd.IntN(200_000), 60_000+c.rnd.IntN(200_000)
		c.mu.Unlock()
		go cut(host, guest, in)
		go cut(guest, host, out)
	}
}

func cut(from, to net.Conn, n int) {
	io.CopyN(to, from, int64(n))
	from.Close()
	to.Close()
}

// aliveMachine is a machine that runs for as long as the test.
type aliveMachine struct{ hypervisor.Machine }

func (aliveMachine) Done() <-chan struct{} { return nil }
func (aliveMachine) Close() error          { return nil }

// J2, the daemon's half: the link to the guest is cut over and over while a
// command takes input and gives output, and not a byte is lost or repeated.
func TestACommandOutlivesItsLink(t *testing.T) {
	dir := t.TempDir()
	token := bytes.Repeat([]byte{7}, 32)
	direct := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", direct)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	srv := agent.NewServer(agent.NewHosted(token, nil), agent.Options{NoCgroup: true})
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ctx, l) }()
	c := &cutter{to: direct, rnd: rand.New(rand.NewPCG(1, 2))}
	if c.Listener, err = net.Listen("unix", filepath.Join(dir, "cut.sock")); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go c.serve()

	s := New(ctx, Ports{}, Options{Log: slog.New(slog.DiscardHandler)})
	defer s.Close()
	e := s.remember(Record{ID: "0123456789abcdef", Name: "web", Intent: Running})
	e.setMachine(aliveMachine{})
	e.setLink(newLink(ctx, "web", hypervisor.Endpoint{Kind: guestlink.Unix, Path: c.Addr().String()}, func() ([]byte, error) { return token, nil }, nil))

	input := make([]byte, 2<<20)
	for i := range input {
		input[i] = byte(rand.Uint32())
	}
	caller := newCatCaller(input)
	err = s.Exec(ctx, ExecRequest{VM: "web", Start: &wire.ExecRequest{ID: "cat", Argv: []string{"cat"}, Cwd: "/", Stdin: true}}, ExecIO{In: caller.in, Out: caller.out})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(caller.got, input) {
		t.Errorf("%d bytes came back of %d, the same up to %d", len(caller.got), len(input), same(caller.got, input))
	}
	if caller.exit == nil || caller.exit.Code != 0 || c.cuts < 5 {
		t.Errorf("exit %+v after %d cuts", caller.exit, c.cuts)
	}
	t.Logf("%d links", c.cuts)
	s.Close()
	cancel()
	srv.Close()
	select {
	case <-served:
	case <-time.After(10 * time.Second):
		t.Error("the agent does not end")
	}
}

func same(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// catCaller feeds a command, at most window bytes ahead of its
// acknowledgements, and keeps what comes back.
type catCaller struct {
	input []byte
	got   []byte
	exit  *wire.Exit

	mu     sync.Mutex
	cond   *sync.Cond
	sent   int
	acked  uint64
	ack    uint64 // output to acknowledge
	ended  bool
	closed bool
}

func newCatCaller(input []byte) *catCaller {
	c := &catCaller{input: input}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *catCaller) in() (wire.ExecInput, error) {
	const window, piece = 128 << 10, 9000
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.ended:
			return wire.ExecInput{}, io.EOF
		case c.ack > 0:
			a := c.ack
			c.ack = 0
			return wire.ExecInput{AckStdout: &a}, nil
		case c.sent < len(c.input) && c.sent-int(c.acked) < window:
			at := c.sent
			c.sent = min(at+piece, len(c.input))
			return wire.ExecInput{Stdin: &wire.Chunk{Off: uint64(at), Data: c.input[at:c.sent]}}, nil
		case c.sent == len(c.input) && !c.closed:
			c.closed = true
			end := uint64(c.sent)
			return wire.ExecInput{CloseAt: &end}, nil
		}
		c.cond.Wait()
	}
}

func (c *catCaller) out(o wire.ExecOutput) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.cond.Broadcast()
	switch {
	case o.Stdout != nil:
		if o.Stdout.Off != uint64(len(c.got)) {
			return fmt.Errorf("output at %d, %d expected", o.Stdout.Off, len(c.got))
		}
		c.got = append(c.got, o.Stdout.Data...)
		c.ack = uint64(len(c.got))
	case o.AckStdin != nil:
		c.acked = max(c.acked, *o.AckStdin)
	case o.Exit != nil:
		c.exit, c.ended = o.Exit, true
	}
	return nil
}
