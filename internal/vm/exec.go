package vm

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Bounds of what the daemon holds of one command.
const (
	stdinHeld   = 1 << 20 // input of the caller's that the guest has not acknowledged
	orphanLimit = 5 * time.Minute
	attachLimit = 15 * time.Second
	chunkLimit  = 32 << 10
)

// ExecRequest starts a command, or with Attach goes on with one.
type ExecRequest struct {
	VM      string
	Start   *wire.ExecRequest
	Attach  *wire.AttachRequest
	Release bool // an ephemeral VM goes when this command has ended
}

// ExecIO joins a command to its caller.
type ExecIO struct {
	// In gives the caller's next input; io.EOF when it has nothing more to
	// say and still listens, another error when it has gone. It is called
	// from one goroutine.
	In func() (wire.ExecInput, error)
	// Out takes the command's output in order. It is called from one
	// goroutine and may block: then the guest waits as well.
	Out func(wire.ExecOutput) error
}

// Exec joins a caller to a command in the guest until the command has ended or
// the caller has gone. The link to the guest may be lost meanwhile: it is
// dialled again and the command is gone on with where it stood, without a byte
// lost or repeated. A command whose caller went without a word runs on for a
// while, so that the caller can attach again.
func (s *Service) Exec(ctx context.Context, req ExecRequest, caller ExecIO) error {
	e, err := s.find(req.VM)
	if err != nil {
		return err
	}
	if err := s.awaitBoot(ctx, e); err != nil {
		return err
	}
	if err := Legal(VerbExec, e.name(), s.state(e)); err != nil {
		return err
	}
	defer e.use()()
	x := &execution{s: s, e: e, caller: caller, wake: make(chan struct{}, 1)}
	switch {
	case req.Start != nil:
		start := *req.Start
		if err := checkExec(start); err != nil {
			return err
		}
		start.OrphanMS = uint64(orphanLimit.Milliseconds())
		start.Env = append(specEnv(e.record().Spec.Env), start.Env...)
		if start.Cwd == "" {
			start.Cwd = e.record().Workspace
		}
		x.id, x.start = start.ID, &start
	case req.Attach != nil:
		x.id, x.out, x.err = req.Attach.ID, req.Attach.StdoutOff, req.Attach.StderrOff
		x.rows, x.cols = req.Attach.Rows, req.Attach.Cols
	default:
		return errs.New(errs.Invalid, "exec_empty", "the first message is start or attach").WithHint("send ExecStart first")
	}
	if req.Release {
		e.owners.attach(x.id)
		defer func() { e.owners.detach(s, e, x.id, x.over()) }()
	}
	return x.run(ctx)
}

// awaitBoot lets a command that comes while its VM is starting wait for that.
func (s *Service) awaitBoot(ctx context.Context, e *entry) error {
	if st := s.state(e); st == StateCreating || st == StateStarting {
		return s.locks.Wait(ctx, e.record().ID)
	}
	return nil
}

func specEnv(env []EnvVar) []wire.KV {
	out := make([]wire.KV, 0, len(env))
	for _, v := range env {
		out = append(out, wire.KV{Key: v.Name, Value: v.Value})
	}
	return out
}

func checkExec(r wire.ExecRequest) error {
	if r.ID == "" || len(r.ID) > 64 {
		return errs.New(errs.Invalid, "exec_id_invalid", "a command needs an id of 1 to 64 bytes").WithHint("make up a random one")
	}
	if len(r.Argv) == 0 && !r.Shell {
		return errs.New(errs.Invalid, "exec_empty", "no command was given").WithHint("banger vm exec NAME -- COMMAND")
	}
	total := 0
	for _, a := range r.Argv {
		total += len(a) + 1
	}
	if len(r.Argv) > wire.MaxArgs || total > wire.MaxArgsBytes {
		return errs.New(errs.Invalid, "exec_too_long", "the command has more than %d arguments or %s", wire.MaxArgs, Size(wire.MaxArgsBytes)).
			WithHint("put them in a file and copy that: banger vm cp")
	}
	return nil
}

// execution is one caller's time with one command.
type execution struct {
	s      *Service
	e      *entry
	caller ExecIO
	id     string
	start  *wire.ExecRequest // nil: it was started before
	out    uint64            // offsets that the caller has got
	err    uint64
	begun  bool // the guest has said that it started
	rows   uint32
	cols   uint32

	mu     sync.Mutex
	held   []byte // input from heldAt on that the guest has not acknowledged
	heldAt uint64
	closed *uint64          // where input ends
	queue  []wire.ExecInput // what else is to be sent
	ended  bool             // the exit was passed on
	bye    bool             // the caller said its last word
	wake   chan struct{}
}

func (x *execution) over() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ended || x.bye
}

// run goes from link to link until the command or its caller has ended.
func (x *execution) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go x.listen(cancel) // ends when the caller's stream does
	lost := time.Time{}
	for {
		p, err := x.join(ctx)
		if err == nil {
			lost = time.Time{}
			err = x.pump(ctx, p)
			p.Close()
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			x.lastWord()
			return context.Cause(ctx)
		case !errors.Is(err, guest.ErrLinkLost):
			return err
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		if _, f := x.e.facts(); !f.Alive || time.Since(lost) > attachLimit {
			name := x.e.name()
			x.mu.Lock()
			x.bye = true // nobody will come back for it
			x.mu.Unlock()
			return errs.New(errs.Unavailable, "vm_ended", "%q ended while the command ran", name).WithHint("banger vm logs %s --console", name).Because(err)
		}
	}
}

// lastWord delivers an end that the caller sent just before it went.
func (x *execution) lastWord() {
	x.mu.Lock()
	send := x.bye && !x.ended
	x.mu.Unlock()
	if !send {
		return
	}
	x.s.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, attachLimit)
		defer cancel()
		c, err := x.e.client(ctx)
		if err != nil {
			return
		}
		p, err := c.Attach(ctx, wire.AttachRequest{ID: x.id, StdoutOff: x.out, StderrOff: x.err})
		if err != nil {
			return
		}
		defer p.Close()
		if err := p.Send(wire.ExecInput{End: "hup"}); err != nil {
			x.s.log.Info("hang up a command", "vm", x.e.record().ID, "err", err)
		}
	})
}

// join starts the command, or attaches to it where it stands.
func (x *execution) join(ctx context.Context) (*guest.Process, error) {
	c, err := x.e.client(ctx)
	if err != nil {
		return nil, err
	}
	if x.start != nil && !x.begun {
		// the same id again means the same command: the agent attaches
		return c.Exec(ctx, *x.start)
	}
	return c.Attach(ctx, wire.AttachRequest{ID: x.id, StdoutOff: x.out, StderrOff: x.err, Rows: x.rows, Cols: x.cols})
}

// pump moves everything both ways over one link; nil when the exit was passed on.
func (x *execution) pump(ctx context.Context, p *guest.Process) error {
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(pctx, func() { p.Close() })
	defer stop()
	started := make(chan uint64, 1)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		x.send(pctx, p, started)
	}()
	defer func() { cancel(); <-sent }()
	for {
		o, err := p.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return guest.ErrLinkLost
		case err != nil:
			return err
		}
		switch {
		case o.Started != nil:
			select {
			case started <- o.Started.StdinOff:
			default:
			}
			if x.begun {
				// the caller knows that it started: only our link was
				// lost, and with it perhaps an acknowledgement
				off := o.Started.StdinOff
				x.acknowledged(off)
				o = wire.ExecOutput{AckStdin: &off}
			}
			x.begun = true
		case o.AckStdin != nil:
			x.acknowledged(*o.AckStdin)
		case o.Stdout != nil:
			x.out = o.Stdout.Off + uint64(len(o.Stdout.Data))
		case o.Stderr != nil:
			x.err = o.Stderr.Off + uint64(len(o.Stderr.Data))
		}
		if err := x.caller.Out(o); err != nil {
			return err
		}
		if o.Exit != nil {
			x.mu.Lock()
			x.ended = true
			x.mu.Unlock()
			return nil
		}
	}
}

func (x *execution) acknowledged(to uint64) {
	x.mu.Lock()
	if to > x.heldAt && to <= x.heldAt+uint64(len(x.held)) {
		x.held = append([]byte(nil), x.held[to-x.heldAt:]...)
		x.heldAt = to
	}
	x.mu.Unlock()
	x.nudge()
}

func (x *execution) nudge() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// listen takes in what the caller sends, at most stdinHeld bytes ahead of the
// guest, until the caller has gone.
func (x *execution) listen(cancel context.CancelCauseFunc) {
	for {
		in, err := x.caller.In()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			cancel(context.Canceled)
			return
		}
		x.mu.Lock()
		switch {
		case in.Stdin != nil:
			if !x.hold(in.Stdin) {
				x.mu.Unlock()
				cancel(errs.New(errs.Invalid, "stdin_overrun", "input came out of order, or more than %s ahead of its acknowledgements", Size(stdinHeld)).
					WithHint("wait for ack_stdin"))
				return
			}
		case in.CloseAt != nil:
			x.closed = in.CloseAt
		default:
			if in.Resize != nil {
				x.rows, x.cols = in.Resize.Rows, in.Resize.Cols
			}
			x.bye = x.bye || in.End != ""
			if len(x.queue) < 1024 {
				x.queue = append(x.queue, in)
			}
		}
		x.mu.Unlock()
		x.nudge()
	}
}

// hold keeps input until the guest has it; what was kept already is dropped.
// A caller may be stdinHeld bytes ahead of the guest's acknowledgements: it
// cannot be made to wait here, for its own acknowledgements come by the same
// way. One that goes further is refused.
func (x *execution) hold(c *wire.Chunk) bool {
	if x.heldAt == 0 && len(x.held) == 0 && x.start == nil {
		x.heldAt = c.Off // after an attach input goes on where the guest said
	}
	end := x.heldAt + uint64(len(x.held))
	if c.Off > end {
		return false
	}
	if c.Off+uint64(len(c.Data)) <= end {
		return true
	}
	fresh := c.Data[end-c.Off:]
	if len(fresh) > stdinHeld-len(x.held) {
		return false
	}
	x.held = append(x.held, fresh...)
	return true
}

// send passes on what there is to send, beginning where the guest says that
// its input stands.
func (x *execution) send(ctx context.Context, p *guest.Process, started <-chan uint64) {
	var at uint64
	select {
	case at = <-started:
	case <-ctx.Done():
		return
	}
	closedSent := false
	for {
		x.mu.Lock()
		var next []wire.ExecInput
		if at < x.heldAt {
			at = x.heldAt
		}
		if have := x.heldAt + uint64(len(x.held)); at < have {
			data := x.held[at-x.heldAt:]
			data = data[:min(len(data), chunkLimit)]
			next = append(next, wire.ExecInput{Stdin: &wire.Chunk{Off: at, Data: append([]byte(nil), data...)}})
			at += uint64(len(data))
		} else if x.closed != nil && !closedSent && at >= *x.closed {
			next = append(next, wire.ExecInput{CloseAt: x.closed})
			closedSent = true
		}
		next = append(next, x.queue...)
		x.queue = nil
		x.mu.Unlock()
		for _, in := range next {
			if err := p.Send(in); err != nil {
				return
			}
		}
		if len(next) > 0 {
			continue
		}
		select {
		case <-x.wake:
		case <-ctx.Done():
			return
		}
	}
}
