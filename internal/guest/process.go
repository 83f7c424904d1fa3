package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Process is one reader's end of a command in the guest. One goroutine may
// receive while any number send. Closing it leaves the command running until
// its orphan limit, unless an End was sent.
//
// Output is kept in the guest until it is acknowledged (AckStdout, AckStderr),
// and a command blocks once wire.OutputRing bytes are not; so acknowledge what
// is safe. Standard input sent beyond wire.StdinWindow bytes past the guest's
// AckStdin waits inside Send until Recv has seen the ack.
type Process struct {
	c    *Client
	ctx  context.Context
	st   *mux.Stream
	stop func() bool
	id   string

	wmu sync.Mutex // one message at a time on the stream

	mu    sync.Mutex
	taken uint64        // of standard input, by the guest
	moved chan struct{} // closed and replaced when taken moves
	over  bool
	next  [2]uint64 // offsets expected of stdout and stderr
	known [2]bool
	ended bool // Exit came; Recv's alone
}

// ID is the command's, to attach with.
func (p *Process) ID() string { return p.id }

// Exec starts a command; ctx bounds the whole Process. An empty ID is made up.
// A command that cannot be found or run is no error here but an Exit with a
// Failure.
func (c *Client) Exec(ctx context.Context, req wire.ExecRequest) (*Process, error) {
	if req.ID == "" {
		req.ID = rand.Text()
	}
	if err := checkExec(&req); err != nil {
		return nil, err
	}
	p, err := c.process(ctx, wire.MethodExec, &req, req.ID)
	if err == nil {
		p.known = [2]bool{true, true}
	}
	return p, err
}

// Attach goes on with a command at the offsets given; ctx bounds the Process.
// The first reader, if it is still there, is let go.
func (c *Client) Attach(ctx context.Context, req wire.AttachRequest) (*Process, error) {
	p, err := c.process(ctx, wire.MethodAttach, &req, req.ID)
	if err == nil {
		p.next = [2]uint64{req.StdoutOff, req.StderrOff}
		p.known = [2]bool{true, true}
	}
	return p, err
}

func checkExec(req *wire.ExecRequest) error {
	size := 0
	for _, a := range req.Argv {
		size += len(a) + 1
	}
	for _, kv := range req.Env {
		size += len(kv.Key) + len(kv.Value) + 2
	}
	if len(req.Argv) > wire.MaxArgs || len(req.Env) > wire.MaxArgs || size > wire.MaxArgsBytes {
		return errs.New(errs.Invalid, "command_too_long", "the command is too long: %d arguments, %d bytes with the environment", len(req.Argv), size)
	}
	if len(req.Argv) == 0 && !req.Shell {
		return errs.New(errs.Invalid, "no_command", "no command given")
	}
	return nil
}

func (c *Client) process(ctx context.Context, method wire.Method, req wire.Message, id string) (*Process, error) {
	st, stop, err := c.begin(ctx, method, req, false)
	if err != nil {
		return nil, err
	}
	return &Process{c: c, ctx: ctx, st: st, stop: stop, id: id, moved: make(chan struct{})}, nil
}

// Send gives the command input, a signal, a size, an ack or an end.
func (p *Process) Send(in wire.ExecInput) error {
	if in.Stdin != nil {
		if err := p.room(in.Stdin.Off + uint64(len(in.Stdin.Data))); err != nil {
			return err
		}
	}
	b, err := wire.AppendMessage(nil, wire.KindItem, &in)
	if err != nil {
		return errs.Wrap(err, errs.Invalid, "guest_request", "send to the command")
	}
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if _, err := p.st.Write(b); err != nil {
		return p.c.ended(p.ctx, err)
	}
	return nil
}

// room waits until the guest takes standard input up to end.
func (p *Process) room(end uint64) error {
	for {
		p.mu.Lock()
		ok, over, moved := end <= p.taken+wire.StdinWindow, p.over, p.moved
		p.mu.Unlock()
		if ok {
			return nil
		}
		if over {
			return errs.New(errs.Unavailable, "command_ended", "the command takes no more input")
		}
		select {
		case <-moved:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		case <-p.c.Done():
			return p.c.Err()
		}
	}
}

func (p *Process) advance(taken uint64, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if taken > p.taken || over != p.over {
		p.taken = max(p.taken, taken)
		p.over = p.over || over
		close(p.moved)
		p.moved = make(chan struct{})
	}
}

// Recv gives the next output; io.EOF after Exit.
func (p *Process) Recv() (wire.ExecOutput, error) {
	out, err := p.recv()
	if err != nil {
		p.advance(0, true)
	}
	return out, err
}

func (p *Process) recv() (out wire.ExecOutput, err error) {
	kind, body, err := wire.ReadMessage(p.st)
	if errors.Is(err, io.EOF) && p.ended {
		return out, io.EOF
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: a command without an end", ErrMisbehaved)
	}
	if err != nil {
		return out, p.c.ended(p.ctx, err)
	}
	switch kind {
	case wire.KindItem:
	case wire.KindError:
		return out, p.c.explain(settle(kind, body, nil))
	default:
		return out, p.c.explain(fmt.Errorf("%w: message of kind %d of a command", ErrMisbehaved, kind))
	}
	if err := wire.Decode(body, &out); err != nil {
		return wire.ExecOutput{}, p.c.explain(err)
	}
	if err := p.check(&out); err != nil {
		return wire.ExecOutput{}, p.c.explain(err)
	}
	return out, nil
}

// check holds a guest to its offsets and to one thing per message.
func (p *Process) check(out *wire.ExecOutput) error {
	n := 0
	for i, chunk := range []*wire.Chunk{out.Stdout, out.Stderr} {
		if chunk == nil {
			continue
		}
		n++
		if p.known[i] && chunk.Off != p.next[i] {
			return fmt.Errorf("%w: output at %d in place of %d", ErrMisbehaved, chunk.Off, p.next[i])
		}
		p.next[i] = chunk.Off + uint64(len(chunk.Data))
	}
	if out.Started != nil {
		n++
		p.advance(out.Started.StdinOff, false)
	}
	if out.AckStdin != nil {
		n++
		p.advance(*out.AckStdin, false)
	}
	if out.Exit != nil {
		n++
		out.Exit.Code &= 0xff
		out.Exit.Signal = clean(out.Exit.Signal, 16)
		out.Exit.Message = clean(out.Exit.Message, maxLine)
		p.ended = true
		p.advance(0, true)
	}
	if n != 1 {
		return fmt.Errorf("%w: %d things in one message", ErrMisbehaved, n)
	}
	return nil
}

// Close leaves the command; what was sent before still reaches the guest.
func (p *Process) Close() error {
	p.stop()
	return p.st.Close()
}
