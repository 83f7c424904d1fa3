package apiclient

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"time"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

const (
	stdinWindow   = 704 << 10 // input that may be under way without the guest's receipt (bytes)
	stdinChunk    = 32 << 10
	attachBudget  = 30 * time.Second // how long a lost connection is mended
	abortGrace    = 500 * time.Millisecond
	attachBackoff = 20 * time.Millisecond
	maxBackoff    = 500 * time.Millisecond
)

// ExecIO is what a command in a guest is joined to.
type ExecIO struct {
	// Stdin is read when the start says so. Close must make a Read that is
	// under way return; Exec closes it at its end.
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
	// Resize gives the terminal's new sizes, Signals the names of signals
	// for the command ("INT").
	Resize  <-chan *bangerv1.WindowSize
	Signals <-chan string
	// Abort ends the command (SIGHUP, then SIGKILL) and makes Exec return
	// the error it gets.
	Abort <-chan error
	// Started, if set, is told once when the command runs.
	Started func(*bangerv1.ExecStarted)
	// Lost, if set, is told when the connection broke and is being mended.
	Lost func(error)
}

// OutputError is a failure to write what the command wrote, a closed pipe for
// instance; the command was ended.
type OutputError struct{ Err error }

func (e *OutputError) Error() string { return "cannot write the command's output: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *OutputError) Unwrap() error { return e.Err }

// NewExecID makes the id of a command.
func NewExecID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Exec runs a command in a guest and returns how it ended, after all its
// output was written. A connection or daemon that goes away in between is
// survived: the command is found again by its id and goes on at the bytes both
// sides have got to; none is lost or doubled. Cancelling parent leaves at once
// without ending the command.
func (c *Client) Exec(parent context.Context, start *bangerv1.ExecStart, xio ExecIO) (*bangerv1.ExecExit, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	x := newExecution(c, start, xio)
	if start.GetStdin() && xio.Stdin != nil {
		read := make(chan struct{})
		go func() { defer close(read); x.readStdin(ctx) }()
		defer func() { cancel(); _ = xio.Stdin.Close(); <-read }()
	}
	collected := make(chan struct{})
	go func() { defer close(collected); x.collect(ctx) }()
	defer func() { cancel(); <-collected }()

	type result struct {
		exit *bangerv1.ExecExit
		err  error
	}
	// buffered: when the output blocks for ever and the user aborts, nobody
	// waits for this goroutine; it ends with the process.
	done := make(chan result, 1)
	go func() {
		exit, err := x.run(ctx)
		done <- result{exit, err}
	}()
	select {
	case r := <-done:
		return r.exit, r.err
	case <-x.aborted:
	case <-parent.Done():
	}
	grace := time.NewTimer(abortGrace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	}
	if x.isAborted() {
		return nil, x.abortErr
	}
	return nil, Translate(parent.Err())
}

// run goes through connections until the command has ended.
func (x *execution) run(ctx context.Context) (*bangerv1.ExecExit, error) {
	exit, err := x.connection(ctx, false)
	for exit == nil && x.mendable(ctx, err) {
		if x.io.Lost != nil {
			x.io.Lost(err)
		}
		exit, err = x.mend(ctx, err)
	}
	return exit, err
}

func (x *execution) mendable(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil || x.isAborted() {
		return false
	}
	// a daemon that ends cancels its calls; nobody here did
	return Lost(err) || errs.Is(err, errs.Cancelled)
}

// mend attaches again, within a budget, and goes on.
func (x *execution) mend(ctx context.Context, cause error) (*bangerv1.ExecExit, error) {
	deadline := time.NewTimer(attachBudget)
	defer deadline.Stop()
	wait := attachBackoff
	for {
		_, err := x.c.Reconnect(ctx)
		if err == nil {
			before := x.connections()
			// a start that may never have arrived is sent again: the same id
			// is the same command, so nothing runs twice
			exit, cerr := x.connection(ctx, x.everStarted())
			if exit != nil || x.connections() != before {
				return exit, cerr // it was attached; the caller judges
			}
			if err = cerr; errs.Is(err, errs.NotFound) && x.everStarted() {
				return nil, errs.New(errs.Unavailable, "exec_lost", "the command was lost with the connection").WithHint("banger ps -a; banger events").Because(err)
			}
		}
		if x.isAborted() {
			return nil, x.abortErr
		}
		if k := errs.KindOf(err); !x.mendable(ctx, err) && k != errs.Busy && k != errs.Unavailable {
			return nil, err
		}
		retry := time.NewTimer(wait)
		select {
		case <-retry.C:
		case <-deadline.C:
			retry.Stop()
			return nil, errs.New(errs.Unavailable, "exec_lost", "the connection to the command broke and could not be mended within %s", attachBudget).
				WithHint("the command may still run in the VM: banger daemon status").Because(cause)
		case <-x.aborted:
			retry.Stop()
			return nil, x.abortErr
		case <-ctx.Done():
			retry.Stop()
			return nil, Translate(ctx.Err())
		}
		wait = min(wait*2, maxBackoff)
	}
}

// connection is one stream, from start or attach to the exit or an error.
func (x *execution) connection(ctx context.Context, attach bool) (*bangerv1.ExecExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := x.c.VMs.Exec(ctx)
	defer func() { _ = stream.CloseResponse() }()
	x.begin(attach)
	// an error of Send is io.EOF; Receive tells the reason
	if err := stream.Send(x.first(attach)); err != nil && !errors.Is(err, io.EOF) {
		return nil, Translate(err)
	}
	sendCtx, stopSending := context.WithCancel(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		x.send(sendCtx, stream.Send)
		if ctx.Err() != nil {
			// the transport does not look at ctx while it waits for input
			_ = stream.CloseRequest()
			return
		}
		if x.isAborted() {
			_ = stream.Send(&bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_End{End: "hup"}})
			_ = stream.CloseRequest()
			grace := time.AfterFunc(abortGrace, cancel)
			<-ctx.Done()
			grace.Stop()
		}
	}()
	exit, err := x.receive(stream.Receive)
	if x.isAborted() {
		cancel()
		<-sent
		stopSending()
		return nil, x.abortErr
	}
	if err != nil && !isOutput(err) {
		cancel()
	}
	stopSending()
	end := "done"
	if isOutput(err) {
		end = "hup"
		time.AfterFunc(abortGrace, cancel)
	}
	<-sent
	if exit != nil || isOutput(err) {
		time.AfterFunc(2*abortGrace, cancel) // a daemon that never ends the stream
		if stream.Send(&bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_End{End: end}}) == nil {
			_ = stream.CloseRequest()
			for {
				if _, err := stream.Receive(); err != nil {
					break
				}
			}
		}
	}
	return exit, Translate(err)
}

func isOutput(err error) bool {
	var oe *OutputError
	return errors.As(err, &oe)
}
