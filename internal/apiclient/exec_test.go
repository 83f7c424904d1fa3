package apiclient_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/errs"
)

// pieces gives its bytes in pieces of odd sizes and then calls at each step.
type pieces struct {
	b    []byte
	step func(left int)
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(len(p.b), 1+rand.IntN(9000))])
	p.b = p.b[n:]
	if p.step != nil {
		p.step(len(p.b))
	}
	return n, nil
}

func (p *pieces) Close() error { return nil }

// silence is an input on which nothing ever comes.
type silence struct {
	once sync.Once
	ch   chan struct{}
}

func newSilence() *silence                    { return &silence{ch: make(chan struct{})} }
func (s *silence) Read(b []byte) (int, error) { <-s.ch; return 0, io.EOF }
func (s *silence) Close() error               { s.once.Do(func() { close(s.ch) }); return nil }

func startOf(argv ...string) *bangerv1.ExecStart {
	return &bangerv1.ExecStart{Vm: "web", Id: apiclient.NewExecID(), Argv: argv, Stdin: true}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestInputArrivesAndOutputAndStatusComeBack(t *testing.T) {
	d := newFakeDaemon(t)
	d.make = func(*bangerv1.ExecStart) *fakeExec {
		e := cat(7)
		e.err = []byte("apart")
		return e
	}
	var out, errOut bytes.Buffer
	in := random(3 << 20)
	exit, err := d.client().Exec(within(t, 20*time.Second), startOf("cat"), apiclient.ExecIO{Stdin: &pieces{b: in}, Stdout: &out, Stderr: &errOut})
	if err != nil || exit.GetCode() != 7 {
		t.Fatalf("%v, %v", exit, err)
	}
	if !bytes.Equal(out.Bytes(), in) || errOut.String() != "apart" {
		t.Errorf("%d bytes and %q came back", out.Len(), errOut.String())
	}
}

func TestNoByteIsLostOrDoubledWhenTheConnectionBreaks(t *testing.T) {
	for _, c := range []struct {
		name    string
		disturb func(*fakeDaemon)
	}{
		{"connection cut", (*fakeDaemon).cut},
		{"daemon restarted", (*fakeDaemon).restart},
		{"daemon restarted and busy", func(d *fakeDaemon) {
			d.mu.Lock()
			d.refuse = 2
			d.mu.Unlock()
			d.restart()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newFakeDaemon(t)
			d.resends = true
			d.make = func(*bangerv1.ExecStart) *fakeExec { return cat(3) }
			in := random(4 << 20)
			next := len(in) - 100_000
			var out bytes.Buffer
			lost := 0
			exit, err := d.client().Exec(within(t, 30*time.Second), startOf("cat"), apiclient.ExecIO{
				Stdin: &pieces{b: in, step: func(left int) {
					if left < next {
						next -= 700_000
						c.disturb(d)
					}
				}},
				Stdout: &out, Stderr: io.Discard, Lost: func(error) { lost++ },
			})
			if err != nil || exit.GetCode() != 3 {
				t.Fatalf("%v, %v", exit, err)
			}
			if !bytes.Equal(out.Bytes(), in) {
				t.Errorf("%d bytes went in, %d others came back", len(in), out.Len())
			}
			if lost == 0 || d.attach == 0 || d.starts != 1 {
				t.Errorf("lost %d times, attached %d times, started %d times", lost, d.attach, d.starts)
			}
		})
	}
}

func TestAStartThatNeverArrivedIsStartedAgain(t *testing.T) {
	d := newFakeDaemon(t)
	d.lose = 1
	d.make = func(*bangerv1.ExecStart) *fakeExec { return cat(0) }
	var out bytes.Buffer
	exit, err := d.client().Exec(within(t, 10*time.Second), startOf("cat"), apiclient.ExecIO{Stdin: &pieces{b: []byte("hello")}, Stdout: &out, Stderr: io.Discard})
	if err != nil || exit.GetCode() != 0 || out.String() != "hello" || d.starts != 1 {
		t.Errorf("%v, %v, %q, %d starts", exit, err, out.String(), d.starts)
	}
}

func TestACommandThatTheGuestForgotIsAnError(t *testing.T) {
	d := newFakeDaemon(t)
	d.make = func(*bangerv1.ExecStart) *fakeExec { return newFakeExec() }
	_, err := d.client().Exec(within(t, 10*time.Second), startOf("sleep"), apiclient.ExecIO{
		Stdin: newSilence(), Stdout: io.Discard, Stderr: io.Discard,
		Started: func(*bangerv1.ExecStarted) {
			d.mu.Lock()
			clear(d.execs)
			d.mu.Unlock()
			d.cut()
		},
	})
	if errs.CodeOf(err) != "exec_lost" {
		t.Errorf("%v", err)
	}
}

func TestSignalsAndSizesReachTheCommand(t *testing.T) {
	d := newFakeDaemon(t)
	signals, sizes := make(chan string), make(chan *bangerv1.WindowSize)
	e := newFakeExec()
	e.onInput = func(e *fakeExec) {
		if strings.Join(e.signals, " ") == "INT TERM" && len(e.sizes) > 0 && e.exit == nil {
			e.exit = &bangerv1.ExecExit{Code: 143, Signal: "TERM"}
		}
	}
	d.make = func(*bangerv1.ExecStart) *fakeExec { return e }
	go func() {
		signals <- "INT"
		sizes <- &bangerv1.WindowSize{Rows: 24, Cols: 80}
		signals <- "TERM"
	}()
	exit, err := d.client().Exec(within(t, 10*time.Second), startOf("sleep"), apiclient.ExecIO{Stdin: newSilence(), Stdout: io.Discard, Stderr: io.Discard, Signals: signals, Resize: sizes})
	if err != nil || exit.GetCode() != 143 || e.sizes[0].GetCols() != 80 {
		t.Errorf("%v, %v, %v", exit, err, e.sizes)
	}
	if !e.await(within(t, 5*time.Second), func() bool { return len(e.ends) == 1 && e.ends[0] == "done" }) {
		t.Errorf("the guest was told %q at the end", e.ends)
	}
}

func TestAbortEndsTheCommandAtOnce(t *testing.T) {
	d := newFakeDaemon(t)
	e := newFakeExec()
	d.make = func(*bangerv1.ExecStart) *fakeExec { return e }
	abort := make(chan error, 1)
	gone := errors.New("gone")
	began := time.Now()
	_, err := d.client().Exec(within(t, 10*time.Second), startOf("sleep"), apiclient.ExecIO{
		Stdin: newSilence(), Stdout: io.Discard, Stderr: io.Discard, Abort: abort, Started: func(*bangerv1.ExecStarted) { abort <- gone },
	})
	if !errors.Is(err, gone) || time.Since(began) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if !e.await(within(t, 5*time.Second), func() bool { return len(e.ends) == 1 && e.ends[0] == "hup" }) {
		t.Errorf("the guest was told %q", e.ends)
	}
}

func TestAbortWorksWhileTheOutputIsBlocked(t *testing.T) {
	d := newFakeDaemon(t)
	d.make = func(*bangerv1.ExecStart) *fakeExec { e := newFakeExec(); e.out = random(1 << 20); return e }
	abort := make(chan error, 1)
	gone := errors.New("gone")
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		_, _ = r.Read(make([]byte, 1))
		abort <- gone
	}()
	_, err := d.client().Exec(within(t, 10*time.Second), startOf("yes"), apiclient.ExecIO{Stdin: newSilence(), Stdout: w, Stderr: io.Discard, Abort: abort})
	if !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestCancellingLeavesAtOnce(t *testing.T) {
	d := newFakeDaemon(t)
	d.make = func(*bangerv1.ExecStart) *fakeExec { return newFakeExec() }
	ctx, cancel := context.WithCancel(within(t, 20*time.Second))
	began := time.Now()
	_, err := d.client().Exec(ctx, startOf("sleep"), apiclient.ExecIO{Stdin: newSilence(), Stdout: io.Discard, Stderr: io.Discard, Started: func(*bangerv1.ExecStarted) { cancel() }})
	if !errs.Is(err, errs.Cancelled) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// broken is a pipe whose reader went away.
type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after -= len(p); b.after > 0 {
		return len(p), nil
	}
	return 0, syscall.EPIPE
}

func TestAClosedOutputEndsTheCommand(t *testing.T) {
	d := newFakeDaemon(t)
	e := newFakeExec()
	e.out = random(1 << 20)
	d.make = func(*bangerv1.ExecStart) *fakeExec { return e }
	_, err := d.client().Exec(within(t, 10*time.Second), startOf("yes"), apiclient.ExecIO{Stdin: newSilence(), Stdout: &broken{after: 50_000}, Stderr: io.Discard})
	var oe *apiclient.OutputError
	if !errors.As(err, &oe) || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%v", err)
	}
	if !e.await(within(t, 5*time.Second), func() bool { return len(e.ends) == 1 && e.ends[0] == "hup" }) {
		t.Errorf("the guest was told %q", e.ends)
	}
}

func TestAGuestThatLiesIsFoundOut(t *testing.T) {
	d := newFakeDaemon(t)
	e := newFakeExec()
	e.in = random(100) // acknowledges what was never sent
	d.make = func(*bangerv1.ExecStart) *fakeExec { return e }
	_, err := d.client().Exec(within(t, 10*time.Second), startOf("cat"), apiclient.ExecIO{Stdin: newSilence(), Stdout: io.Discard, Stderr: io.Discard})
	if errs.CodeOf(err) != "exec_protocol" {
		t.Errorf("%v", err)
	}
}
