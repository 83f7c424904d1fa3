package daemon_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
)

func pbDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// command is one command's caller, as the CLI is one.
type command struct {
	h       *house
	vm, id  string
	release bool
	out     bytes.Buffer
	errs    bytes.Buffer
	exit    *bangerv1.ExecExit
	// each, if set, is called with what has come so far after each message;
	// false leaves without a word, as a killed CLI does.
	each func(c *command) bool
}

func (h *house) newCommand(vm string) *command {
	return &command{h: h, vm: vm, id: "c" + rand.Text()}
}

func (c *command) run(ctx context.Context, argv ...string) error {
	return c.talk(ctx, &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Start{Start: &bangerv1.ExecStart{
		Vm: c.vm, Id: c.id, Argv: argv, ReleaseVm: c.release,
	}}})
}

func (c *command) attach(ctx context.Context) error {
	return c.talk(ctx, &bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_Attach{Attach: &bangerv1.ExecAttach{
		Vm: c.vm, Id: c.id, StdoutOffset: uint64(c.out.Len()), StderrOffset: uint64(c.errs.Len()), ReleaseVm: c.release,
	}}})
}

func (c *command) talk(ctx context.Context, first *bangerv1.ExecRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := c.h.client.VMs.Exec(ctx)
	if err := s.Send(first); err != nil {
		return apiclient.Translate(err)
	}
	for {
		m, err := s.Receive()
		if err != nil {
			return apiclient.Translate(err)
		}
		switch {
		case m.GetStdout() != nil:
			if at := m.GetStdout().GetOffset(); at != uint64(c.out.Len()) {
				return fmt.Errorf("output at %d, %d expected", at, c.out.Len())
			}
			c.out.Write(m.GetStdout().GetData())
			// a stream that is over says why to Receive
			s.Send(&bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_AckStdout{AckStdout: uint64(c.out.Len())}})
		case m.GetStderr() != nil:
			c.errs.Write(m.GetStderr().GetData())
		case m.GetExit() != nil:
			c.exit = m.GetExit()
			s.Send(&bangerv1.ExecRequest{Input: &bangerv1.ExecRequest_End{End: "done"}}) // the daemon may have hung up already
			return nil
		}
		if c.each != nil && !c.each(c) {
			return errLeft
		}
	}
}

var errLeft = fmt.Errorf("the caller left")

// exec runs a command to its end.
func (h *house) exec(vm string, argv ...string) (string, error) {
	c := h.newCommand(vm)
	err := c.run(h.t.Context(), argv...)
	if err == nil && c.exit.GetCode() != 0 {
		err = fmt.Errorf("status %d: %s%s", c.exit.GetCode(), c.errs.String(), c.exit.GetMessage())
	}
	return c.out.String(), err
}

func (h *house) gc(dryRun bool) *bangerv1.GCResponse {
	h.t.Helper()
	r, err := h.client.System.GC(h.t.Context(), connect.NewRequest(&bangerv1.GCRequest{DryRun: dryRun}))
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Msg
}

func (h *house) shutdown(stopVMs bool) {
	h.t.Helper()
	if _, err := h.client.System.Shutdown(h.t.Context(), connect.NewRequest(&bangerv1.ShutdownRequest{StopVms: stopVMs})); err != nil {
		h.t.Fatal(err)
	}
}
