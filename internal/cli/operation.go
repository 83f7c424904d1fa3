package cli

import (
	"errors"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// outcome is what an operation's stream brought.
type outcome struct {
	vm        *bangerv1.VM
	workspace *bangerv1.WorkspaceResult
	image     *bangerv1.Image
	kernel    *bangerv1.Kernel
}

// follower shows the events of operations.
type follower struct {
	a      *app
	stages *ui.Stages
	prefix string // before each stage's name, where several operations run
	lines  bool   // --json: each event is a line
}

// follow reads an operation's stream to its end, showing its stages.
func (f *follower) follow(stream *connect.ServerStreamForClient[bangerv1.OpEvent], err error) (outcome, error) {
	var o outcome
	if err != nil {
		return o, apiclient.Translate(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if err := f.event(&o, stream.Msg()); err != nil {
			return o, err
		}
	}
	return o, apiclient.Translate(stream.Err())
}

func (f *follower) event(o *outcome, e *bangerv1.OpEvent) error {
	line := runLine{}
	switch m := e.GetEvent().(type) {
	case *bangerv1.OpEvent_Progress:
		p := m.Progress
		f.stages.Event(ui.Event{
			Stage: f.prefix + p.GetStage(), Status: p.GetStatus(), Message: p.GetMessage(), Done: p.GetDone(), Total: p.GetTotal(),
			Unit: p.GetUnit(), Elapsed: time.Duration(p.GetElapsedMs()) * time.Millisecond,
		})
		line = runLine{Type: "stage", Stage: viewStage(p)}
	case *bangerv1.OpEvent_Warning:
		if f.lines {
			line = runLine{Type: "warning", Warning: m.Warning}
			break
		}
		f.a.ui.Warn("%s%s", f.prefix, m.Warning)
	case *bangerv1.OpEvent_Vm:
		o.vm = m.Vm
		v := viewVM(m.Vm)
		line = runLine{Type: "vm", VM: &v}
	case *bangerv1.OpEvent_Workspace:
		o.workspace = m.Workspace
		v := viewWorkspace(m.Workspace)
		line = runLine{Type: "workspace", Workspace: &v}
	case *bangerv1.OpEvent_Image:
		o.image = m.Image
	case *bangerv1.OpEvent_Kernel:
		o.kernel = m.Kernel
	}
	if f.lines && line.Type != "" {
		return f.a.ui.JSONLine(line)
	}
	return nil
}

// incomplete says that a stream ended without what it promised.
func incomplete(what string) error {
	return errs.Wrap(errors.New("the stream ended early"), errs.Internal, "stream_incomplete", "bangerd told nothing of %s", what)
}
