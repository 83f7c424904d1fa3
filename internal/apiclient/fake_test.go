package apiclient_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/errs"
)

// fakeDaemon serves the contract on a socket. It can be killed and started
// again; its guests live on, as real ones do.
type fakeDaemon struct {
	bangerv1connect.UnimplementedVMServiceHandler
	bangerv1connect.UnimplementedSystemServiceHandler
	t      *testing.T
	socket string
	api    uint32

	mu    sync.Mutex
	srv   *http.Server
	l     net.Listener
	conns map[net.Conn]bool
	execs map[string]*fakeExec
	// make decides what a started command is.
	make    func(*bangerv1.ExecStart) *fakeExec
	attach  int
	starts  int
	refuse  int // how many attaches are answered with busy
	lose    int // how many starts are lost before they are done
	resends bool
}

func newFakeDaemon(t *testing.T) *fakeDaemon {
	dir, err := os.MkdirTemp("", "bngr")
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{t: t, socket: filepath.Join(dir, "s"), api: buildinfo.API, execs: map[string]*fakeExec{}, conns: map[net.Conn]bool{}}
	d.start()
	t.Cleanup(func() { d.kill(); os.RemoveAll(dir) })
	return d
}

func (d *fakeDaemon) client() *apiclient.Client {
	c := apiclient.New(apiclient.Options{Socket: d.socket, Log: "/log"})
	d.t.Cleanup(c.Close)
	return c
}

// start listens.
func (d *fakeDaemon) start() {
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		d.t.Error(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewVMServiceHandler(d))
	mux.Handle(bangerv1connect.NewSystemServiceHandler(d))
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	p.SetHTTP1(true)
	srv := &http.Server{Handler: mux, Protocols: &p, ConnState: func(c net.Conn, s http.ConnState) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if s == http.StateClosed {
			delete(d.conns, c)
		} else {
			d.conns[c] = true
		}
	}}
	d.mu.Lock()
	d.srv, d.l = srv, l
	d.mu.Unlock()
	go srv.Serve(l)
}

// cut breaks every connection; the daemon stays.
func (d *fakeDaemon) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		c.Close()
	}
}

// kill ends the daemon as kill -9 does, its socket left behind.
func (d *fakeDaemon) kill() {
	d.mu.Lock()
	srv, l := d.srv, d.l
	d.mu.Unlock()
	srv.Close()
	l.Close() // where Serve had not come to know it yet
	d.cut()
}

func (d *fakeDaemon) restart() {
	d.kill()
	os.Remove(d.socket)
	d.start()
}

func (d *fakeDaemon) Info(context.Context, *connect.Request[bangerv1.InfoRequest]) (*connect.Response[bangerv1.InfoResponse], error) {
	return connect.NewResponse(&bangerv1.InfoResponse{Version: "9.9", Api: d.api, ExecPath: "/opt/bangerd"}), nil
}

func (d *fakeDaemon) Get(context.Context, *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	return nil, failure(errs.New(errs.NotFound, "vm_not_found", `no VM named "wbe"`).WithHint(`did you mean "web"?`))
}

func failure(e *errs.Error) error {
	ce := connect.NewError(connect.CodeUnknown, e)
	d, err := connect.NewErrorDetail(&bangerv1.Failure{Kind: string(e.Kind), Code: e.Code, Message: e.Msg, Hint: e.Hint})
	if err != nil {
		return err
	}
	ce.AddDetail(d)
	return ce
}

// fakeExec is a command in a guest: what it got and what it says.
type fakeExec struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	in       []byte
	inClosed bool
	out, err []byte
	outAck   uint64
	signals  []string
	sizes    []*bangerv1.WindowSize
	ends     []string
	exit     *bangerv1.ExecExit
	// onInput is called with the lock held after every change of the input.
	onInput func(*fakeExec)
}

func newFakeExec() *fakeExec { return &fakeExec{changed: make(chan struct{})} }

// change does f and tells everybody who waits.
func (e *fakeExec) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	if e.onInput != nil {
		e.onInput(e)
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// await waits until cond holds.
func (e *fakeExec) await(ctx context.Context, cond func() bool) bool {
	for {
		e.mu.Lock()
		ok, ch := cond(), e.changed
		e.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return false
		}
	}
}

// cat is a command that says what it hears and then ends with a status. It
// hears no more while much of what it said is not acknowledged.
func cat(code uint32) *fakeExec {
	e := newFakeExec()
	e.onInput = func(e *fakeExec) {
		e.out = e.in
		if e.inClosed && e.exit == nil {
			e.exit = &bangerv1.ExecExit{Code: code}
		}
	}
	return e
}

func (d *fakeDaemon) Exec(ctx context.Context, s *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	e, outOff, errOff, err := d.find(first)
	if err != nil {
		return err
	}
	e.mu.Lock()
	started := &bangerv1.ExecStarted{Pid: 1, StdinOffset: uint64(len(e.in))}
	e.mu.Unlock()
	if err := s.Send(&bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Started{Started: started}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		defer cancel()
		e.hear(s)
	}()
	defer func() { <-heard }()
	if err := e.speak(ctx, s, outOff, errOff, d.resends); err != nil {
		cancel()
		return err
	}
	<-heard // the caller says it is done
	return nil
}

func (d *fakeDaemon) find(first *bangerv1.ExecRequest) (*fakeExec, uint64, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := first.GetAttach(); a != nil {
		d.attach++
		if d.refuse > 0 {
			d.refuse--
			return nil, 0, 0, failure(errs.New(errs.Busy, "vm_busy", "adopting"))
		}
		e := d.execs[a.GetId()]
		if e == nil {
			return nil, 0, 0, failure(errs.New(errs.NotFound, "no_command", "no such command"))
		}
		return e, a.GetStdoutOffset(), a.GetStderrOffset(), nil
	}
	if d.lose > 0 {
		d.lose--
		for c := range d.conns {
			c.Close()
		}
		return nil, 0, 0, context.Canceled
	}
	if e := d.execs[first.GetStart().GetId()]; e != nil {
		return e, 0, 0, nil // the same id is the same command
	}
	d.starts++
	e := d.make(first.GetStart())
	d.execs[first.GetStart().GetId()] = e
	return e, 0, 0, nil
}

// hear takes the caller's messages.
func (e *fakeExec) hear(s *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) {
	for {
		m, err := s.Receive()
		if err != nil {
			return
		}
		switch in := m.GetInput().(type) {
		case *bangerv1.ExecRequest_Stdin:
			e.change(func() {
				have := uint64(len(e.in))
				off, data := in.Stdin.GetOffset(), in.Stdin.GetData()
				if off > have || off+uint64(len(data)) <= have {
					return
				}
				e.in = append(e.in, data[have-off:]...)
			})
		case *bangerv1.ExecRequest_StdinEnd:
			e.change(func() { e.inClosed = e.inClosed || in.StdinEnd == uint64(len(e.in)) })
		case *bangerv1.ExecRequest_Signal:
			e.change(func() { e.signals = append(e.signals, in.Signal) })
		case *bangerv1.ExecRequest_Resize:
			e.change(func() { e.sizes = append(e.sizes, in.Resize) })
		case *bangerv1.ExecRequest_AckStdout:
			e.change(func() { e.outAck = max(e.outAck, in.AckStdout) })
		case *bangerv1.ExecRequest_End:
			e.change(func() { e.ends = append(e.ends, in.End) })
			return
		}
	}
}

// speak sends output, receipts and at last the exit.
func (e *fakeExec) speak(ctx context.Context, s *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse], outOff, errOff uint64, resend bool) error {
	var acked uint64
	for {
		var msgs []*bangerv1.ExecResponse
		var exit *bangerv1.ExecExit
		ok := e.await(ctx, func() bool {
			if n := uint64(len(e.out)); n > outOff {
				end := min(n, outOff+10007)
				from := outOff
				if resend {
					from -= min(from, 1000)
				}
				msgs = append(msgs, &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Stdout{Stdout: &bangerv1.ExecData{Offset: from, Data: e.out[from:end:end]}}})
				outOff = end
			}
			if n := uint64(len(e.err)); n > errOff {
				msgs = append(msgs, &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Stderr{Stderr: &bangerv1.ExecData{Offset: errOff, Data: e.err[errOff:n:n]}}})
				errOff = n
			}
			if n := uint64(len(e.in)); n > acked {
				msgs = append(msgs, &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_AckStdin{AckStdin: n}})
				acked = n
			}
			if len(msgs) == 0 {
				exit = e.exit
			}
			return len(msgs) > 0 || exit != nil
		})
		if !ok {
			return ctx.Err()
		}
		if exit != nil {
			msgs = append(msgs, &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Exit{Exit: exit}})
		}
		for _, m := range msgs {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		if exit != nil {
			return nil
		}
	}
}
