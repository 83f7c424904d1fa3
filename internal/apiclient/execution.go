package apiclient

import (
	"context"
	"errors"
	"io"
	"sync"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

// execution is one command as this end knows it, across connections.
type execution struct {
	c     *Client
	start *bangerv1.ExecStart
	io    ExecIO

	aborted  chan struct{} // closed after abortErr is set
	abortErr error
	wake     chan struct{} // something to send
	room     chan struct{} // room for more input

	mu      sync.Mutex
	started bool // ever
	conns   int  // how many connections got as far as started
	ready   bool // this connection may send input
	// input: buf begins at offset base, which the guest has got to; up to
	// sent was sent on this connection.
	buf        []byte
	base, sent uint64
	eof        bool
	eofSent    bool
	signals    []string
	size       *bangerv1.WindowSize
	sizeSent   bool
	out, err   output
}

// output is one of the command's outputs: what was written here, and what of
// it the daemon was told.
type output struct{ next, acked uint64 }

func newExecution(c *Client, start *bangerv1.ExecStart, xio ExecIO) *execution {
	return &execution{
		c: c, start: start, io: xio, size: start.GetSize(), sizeSent: true,
		aborted: make(chan struct{}), wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
}

func (x *execution) isAborted() bool {
	select {
	case <-x.aborted:
		return true
	default:
		return false
	}
}

func (x *execution) everStarted() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.started
}

func (x *execution) connections() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conns
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// readStdin fills the window until the input ends.
func (x *execution) readStdin(ctx context.Context) {
	p := make([]byte, stdinChunk)
	for {
		x.mu.Lock()
		full := len(x.buf) >= stdinWindow
		x.mu.Unlock()
		if full {
			select {
			case <-x.room:
				continue
			case <-ctx.Done():
				return
			}
		}
		n, err := x.io.Stdin.Read(p)
		x.mu.Lock()
		x.buf = append(x.buf, p[:n]...)
		x.eof = x.eof || err != nil
		x.mu.Unlock()
		poke(x.wake)
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}

// collect takes what the caller wants to tell the command.
func (x *execution) collect(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-x.io.Resize:
			x.mu.Lock()
			x.size, x.sizeSent = s, false
			x.mu.Unlock()
		case s := <-x.io.Signals:
			x.mu.Lock()
			x.signals = append(x.signals, s)
			x.mu.Unlock()
		case err := <-x.io.Abort:
			x.abortErr = err
			close(x.aborted)
			poke(x.wake)
			return
		}
		poke(x.wake)
	}
}

// begin readies the bookkeeping for a new connection.
func (x *execution) begin(attach bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ready = !attach
	x.sent, x.eofSent = x.base, false
	x.sizeSent = attach || x.size == x.start.GetSize() // the first message carries it
	x.out.acked, x.err.acked = x.out.next, x.err.next
}

func (x *execution) first(attach bool) *bangerv1.ExecRequest {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !attach {
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Start{Start: x.start}}
	}
	return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Attach{Attach: &bangerv1.ExecAttach{
		Vm: x.start.GetVm(), Id: x.start.GetId(), StdoutOffset: x.out.next, StderrOffset: x.err.next,
		Size: x.size, ReleaseVm: x.start.GetReleaseVm(),
	}}}
}

// send sends what there is to send until ctx ends, the stream breaks or the
// caller aborts.
func (x *execution) send(ctx context.Context, send func(*bangerv1.ExecRequest) error) {
	for {
		if x.isAborted() || ctx.Err() != nil {
			return
		}
		msg := x.next()
		if msg == nil {
			select {
			case <-x.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		if err := send(msg); err != nil {
			if s, ok := msg.GetInput().(*bangerv1.ExecRequest_Signal); ok {
				x.mu.Lock()
				x.signals = append([]string{s.Signal}, x.signals...)
				x.mu.Unlock()
			}
			return
		}
	}
}

// next takes the next message to send, nil where there is none: signals first,
// then sizes, receipts, input, the end of input.
func (x *execution) next() *bangerv1.ExecRequest {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case len(x.signals) > 0:
		s := x.signals[0]
		x.signals = x.signals[1:]
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Signal{Signal: s}}
	case !x.sizeSent:
		x.sizeSent = true
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Resize{Resize: x.size}}
	case x.out.acked < x.out.next:
		x.out.acked = x.out.next
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_AckStdout{AckStdout: x.out.next}}
	case x.err.acked < x.err.next:
		x.err.acked = x.err.next
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_AckStderr{AckStderr: x.err.next}}
	case !x.ready:
		return nil
	}
	if rest := x.buf[x.sent-x.base:]; len(rest) > 0 {
		n := min(len(rest), stdinChunk)
		m := &bangerv1.ExecData{Offset: x.sent, Data: append([]byte(nil), rest[:n]...)}
		x.sent += uint64(n)
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Stdin{Stdin: m}}
	}
	if x.eof && !x.eofSent {
		x.eofSent = true
		return &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_StdinEnd{StdinEnd: x.sent}}
	}
	return nil
}

// receive takes what comes until the exit or an error.
func (x *execution) receive(recv func() (*bangerv1.ExecResponse, error)) (*bangerv1.ExecExit, error) {
	for {
		resp, err := recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errs.New(errs.Unavailable, codeLost, "the connection to bangerd ended before the command did")
			}
			return nil, err
		}
		switch m := resp.GetOutput().(type) {
		case *bangerv1.ExecResponse_Started:
			if err := x.onStarted(m.Started); err != nil {
				return nil, err
			}
		case *bangerv1.ExecResponse_Stdout:
			err = x.write(&x.out, x.io.Stdout, m.Stdout)
		case *bangerv1.ExecResponse_Stderr:
			err = x.write(&x.err, x.io.Stderr, m.Stderr)
		case *bangerv1.ExecResponse_AckStdin:
			err = x.acked(m.AckStdin)
		case *bangerv1.ExecResponse_Exit:
			return m.Exit, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (x *execution) onStarted(s *bangerv1.ExecStarted) error {
	if err := x.acked(s.GetStdinOffset()); err != nil {
		return err
	}
	x.mu.Lock()
	first := !x.started
	x.started, x.ready = true, true
	x.conns++
	x.mu.Unlock()
	poke(x.wake)
	if first && x.io.Started != nil {
		x.io.Started(s)
	}
	return nil
}

// acked drops the input that the guest has.
func (x *execution) acked(off uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if off <= x.base {
		return nil
	}
	if off > x.base+uint64(len(x.buf)) {
		return errs.New(errs.Internal, "exec_protocol", "the guest acknowledged input that was never sent")
	}
	x.buf = append(x.buf[:0], x.buf[off-x.base:]...)
	x.base = off
	x.sent = max(x.sent, off)
	poke(x.room)
	return nil
}

// write writes what of a chunk is new.
func (x *execution) write(o *output, w io.Writer, d *bangerv1.ExecData) error {
	data := d.GetData()
	x.mu.Lock()
	next := o.next
	x.mu.Unlock()
	switch end := d.GetOffset() + uint64(len(data)); {
	case d.GetOffset() > next:
		return errs.New(errs.Internal, "exec_output_gap", "%d bytes of the command's output were lost", d.GetOffset()-next)
	case end <= next:
		return nil
	}
	data = data[next-d.GetOffset():]
	n, err := w.Write(data)
	x.mu.Lock()
	o.next += uint64(n)
	x.mu.Unlock()
	poke(x.wake)
	if err != nil {
		return &OutputError{err}
	}
	return nil
}
