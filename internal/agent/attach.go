package agent

import (
	"context"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// sendSize is how much of an output goes into one message.
const sendSize = 32 << 10

// reader is the host's end of a command: one stream, and how far it has got.
type reader struct {
	e      *execution
	st     *mux.Stream
	gone   bool      // under e.mu
	sent   [2]uint64 // offsets of stdout and stderr
	acked  uint64    // of standard input, told to the host
	began  bool
	buf    []byte // the messages being sent
	data   []byte
	sender sync.WaitGroup
}

// exec starts a command and serves its first reader.
func (s *Server) exec(ctx context.Context, st *mux.Stream, body []byte) error {
	var req wire.ExecRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	e := newExecution(s.execs, &req, body)
	before, err := s.execs.add(e)
	if err != nil {
		return err
	}
	if before != nil {
		return before.serve(&reader{e: before, st: st})
	}
	p, failure := s.execs.start(ctx, &req)
	if failure != nil {
		s.execs.remove(e)
		b, err := wire.AppendMessage(nil, wire.KindItem, &wire.ExecOutput{Exit: failure})
		if err == nil {
			_, err = st.WriteLast(b)
		}
		return err
	}
	e.run(p, time.Duration(min(req.TimeoutMS, 1<<40))*time.Millisecond)
	return e.serve(&reader{e: e, st: st})
}

// attach serves a reader that goes on at its offsets.
func (s *Server) attach(st *mux.Stream, body []byte) error {
	var req wire.AttachRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	e, err := s.execs.find(req.ID)
	if err != nil {
		return err
	}
	e.resize(wire.Size{Rows: req.Rows, Cols: req.Cols})
	return e.serve(&reader{e: e, st: st, sent: [2]uint64{req.StdoutOff, req.StderrOff}})
}

// serve speaks with one reader until it leaves. An earlier one is let go.
func (e *execution) serve(r *reader) error {
	e.mu.Lock()
	for i := range e.out {
		if !e.out[i].holds(r.sent[i]) {
			e.mu.Unlock()
			return errs.New(errs.Conflict, "output_gone", "output at %d is no longer there, only from %d to %d",
				r.sent[i], e.out[i].base, e.out[i].end())
		}
	}
	earlier := e.reader
	e.reader = r
	if e.orphaned != nil {
		e.orphaned.Stop()
		e.orphaned = nil
	}
	e.mu.Unlock()
	if earlier != nil {
		earlier.leave(errs.New(errs.Conflict, "reader_replaced", "another reader has taken the command over"))
	}
	r.sender.Go(r.send)
	r.leave(r.receive())
	r.sender.Wait()
	e.detach(r)
	return nil
}

// leave makes both of a reader's loops end, and tells it why.
func (r *reader) leave(why error) {
	r.e.mu.Lock()
	r.gone = true
	r.e.changed.Broadcast()
	r.e.mu.Unlock()
	if why != nil {
		_ = r.st.SetWriteDeadline(time.Now().Add(lastWords))
		refuse(r.st, why)
	}
	r.st.Close()
}

// detach leaves the command to itself until its orphan limit.
func (e *execution) detach(r *reader) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reader != r {
		return
	}
	e.reader = nil
	if !e.hungUp && e.orphaned == nil {
		e.orphaned = time.AfterFunc(e.orphan, func() { e.hangUp(true) })
	}
}

// send writes output, acknowledgements and at last the exit status.
func (r *reader) send() {
	for {
		b, last := r.next()
		if b == nil {
			return
		}
		var err error
		if last {
			_, err = r.st.WriteLast(b)
		} else {
			_, err = r.st.Write(b)
		}
		if err != nil || last {
			return
		}
	}
}

// next waits for something to send; nil when the reader is gone. Last says
// that it ends with the exit status.
func (r *reader) next() (b []byte, last bool) {
	e := r.e
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if r.gone {
			return nil, false
		}
		r.buf = r.buf[:0]
		if !r.began {
			r.began = true
			r.acked = e.taken
			r.add(&wire.ExecOutput{Started: &wire.Started{PID: uint32(e.pid), StdinOff: e.taken}})
		}
		if e.taken > r.acked {
			r.acked = e.taken
			r.add(&wire.ExecOutput{AckStdin: &r.acked})
		}
		all := true
		for i := range e.out {
			all = r.addOutput(i) && all
		}
		if all && e.exit != nil {
			r.add(&wire.ExecOutput{Exit: e.exit})
			return r.buf, true
		}
		if len(r.buf) > 0 {
			return r.buf, false
		}
		e.changed.Wait()
	}
}

func (r *reader) add(out *wire.ExecOutput) {
	// A message of this size cannot be too large.
	r.buf, _ = wire.AppendMessage(r.buf, wire.KindItem, out)
}

// addOutput adds one chunk; it says whether that was the rest.
func (r *reader) addOutput(i int) bool {
	o := &r.e.out[i]
	if left := o.end() - r.sent[i]; left > 0 {
		if want := int(min(left, sendSize)); cap(r.data) < want {
			r.data = make([]byte, max(want, smallRead))
		}
		data := r.data[:min(left, sendSize)]
		chunk := &wire.Chunk{Off: r.sent[i], Data: data[:o.peek(r.sent[i], data)]}
		r.sent[i] += uint64(len(chunk.Data))
		out := wire.ExecOutput{Stdout: chunk}
		if i == 1 {
			out = wire.ExecOutput{Stderr: chunk}
		}
		r.add(&out)
	}
	return r.sent[i] == o.end()
}

// receive takes what the host sends until it goes.
func (r *reader) receive() error {
	for {
		kind, body, err := wire.ReadMessage(r.st)
		if err != nil {
			return nil //nolint:nilerr // the reader has left, whichever way
		}
		var in wire.ExecInput
		if kind != wire.KindItem {
			return errs.New(errs.Invalid, "bad_request", "a message of kind %d for a command", kind)
		}
		if err := decode(body, &in); err != nil {
			return err
		}
		if err := r.e.input(&in); err != nil {
			return err
		}
	}
}

// input does what one message asks for.
func (e *execution) input(in *wire.ExecInput) error {
	switch {
	case in.Resize != nil:
		e.resize(*in.Resize)
	case in.End == "hup":
		e.hangUp(false)
	case in.End == "done":
		e.done()
	case in.End != "":
		return errs.New(errs.Invalid, "bad_request", "unknown end %q", in.End)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if in.Signal != "" {
		sig, ok := signalNumber(in.Signal)
		if !ok {
			return errs.New(errs.Invalid, "unknown_signal", "unknown signal %q", in.Signal)
		}
		e.signal(sig)
	}
	for i, off := range []*uint64{in.AckStdout, in.AckStderr} {
		if off != nil && e.out[i].ack(*off) {
			e.changed.Broadcast()
		}
	}
	if in.Stdin != nil {
		if err := e.take(in.Stdin); err != nil {
			return err
		}
	}
	if in.CloseAt != nil && e.closeAt == nil {
		at := *in.CloseAt
		e.closeAt = &at
		e.changed.Broadcast()
	}
	return nil
}

// take queues standard input; what came before is skipped.
func (e *execution) take(c *wire.Chunk) error {
	have := e.taken + uint64(len(e.pending))
	end := c.Off + uint64(len(c.Data))
	switch {
	case end <= have:
		return nil
	case c.Off > have:
		return errs.New(errs.Invalid, "stdin_gap", "standard input at %d, %d was next", c.Off, have)
	case end > e.taken+2*wire.StdinWindow:
		return errs.New(errs.Invalid, "stdin_flood", "more than %d bytes of standard input ahead", 2*wire.StdinWindow)
	}
	data := c.Data[have-c.Off:]
	if e.stdinEnd {
		e.taken += uint64(len(data))
	} else {
		e.pending = append(e.pending, data...)
	}
	e.changed.Broadcast()
	return nil
}

// resize tells a terminal its size.
func (e *execution) resize(s wire.Size) {
	e.mu.Lock()
	f := e.output[0]
	ok := e.tty && f != nil && s.Rows > 0 && s.Cols > 0
	e.mu.Unlock()
	if !ok {
		return
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	// A terminal that is gone needs no size.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{
			Row: uint16(min(s.Rows, 0xffff)), Col: uint16(min(s.Cols, 0xffff)),
		})
	})
}

// done forgets a command whose end the host has.
func (e *execution) done() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exit != nil {
		e.hungUp = true
		e.forget()
	}
}

func signalNumber(name string) (unix.Signal, bool) {
	sig := unix.SignalNum("SIG" + name)
	return sig, sig != 0
}
