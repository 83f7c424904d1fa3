package apiserver

import (
	"context"
	"errors"
	"io"
	"net"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/vm"
)

type execStream = connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]

// Exec joins the caller to a command in a guest.
func (v *vmService) Exec(ctx context.Context, stream *execStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	req := vm.ExecRequest{}
	switch in := first.GetInput().(type) {
	case *bangerv1.ExecRequest_Start:
		req.VM, req.Release, req.Start = in.Start.GetVm(), in.Start.GetReleaseVm(), fromStart(in.Start)
	case *bangerv1.ExecRequest_Attach:
		a := in.Attach
		req.VM, req.Release = a.GetVm(), a.GetReleaseVm()
		req.Attach = &wire.AttachRequest{
			ID: a.GetId(), StdoutOff: a.GetStdoutOffset(), StderrOff: a.GetStderrOffset(),
			Rows: a.GetSize().GetRows(), Cols: a.GetSize().GetCols(),
		}
	default:
		return errs.New(errs.Invalid, "exec_empty", "the first message is start or attach").WithHint("send ExecStart first")
	}
	return v.s.rooms.VMs.Exec(ctx, req, vm.ExecIO{
		In: func() (wire.ExecInput, error) {
			for {
				m, err := stream.Receive()
				if err != nil {
					return wire.ExecInput{}, err
				}
				if in, ok := fromInput(m); ok {
					return in, nil
				}
			}
		},
		Out: func(o wire.ExecOutput) error {
			if m := toOutput(o); m != nil {
				return stream.Send(m)
			}
			return nil
		},
	})
}

func fromStart(m *bangerv1.ExecStart) *wire.ExecRequest {
	r := &wire.ExecRequest{
		ID: m.GetId(), Argv: m.GetArgv(), Cwd: m.GetCwd(), TTY: m.GetTty(), Shell: m.GetShell(), Stdin: m.GetStdin(),
		Rows: m.GetSize().GetRows(), Cols: m.GetSize().GetCols(), Toolchain: !m.GetNoToolchain(),
	}
	if d := seconds(m.GetTimeout()); d > 0 {
		r.TimeoutMS = uint64(max(d.Milliseconds(), 1))
	}
	for _, e := range m.GetEnv() {
		r.Env = append(r.Env, wire.KV{Key: e.GetName(), Value: e.GetValue()})
	}
	return r
}

// fromInput gives what the guest is to be told; false for a message that says
// nothing or comes too late.
func fromInput(m *bangerv1.ExecRequest) (wire.ExecInput, bool) {
	switch in := m.GetInput().(type) {
	case *bangerv1.ExecRequest_Stdin:
		return wire.ExecInput{Stdin: &wire.Chunk{Off: in.Stdin.GetOffset(), Data: in.Stdin.GetData()}}, true
	case *bangerv1.ExecRequest_StdinEnd:
		return wire.ExecInput{CloseAt: &in.StdinEnd}, true
	case *bangerv1.ExecRequest_Resize:
		return wire.ExecInput{Resize: &wire.Size{Rows: in.Resize.GetRows(), Cols: in.Resize.GetCols()}}, true
	case *bangerv1.ExecRequest_Signal:
		return wire.ExecInput{Signal: in.Signal}, in.Signal != ""
	case *bangerv1.ExecRequest_AckStdout:
		return wire.ExecInput{AckStdout: &in.AckStdout}, true
	case *bangerv1.ExecRequest_AckStderr:
		return wire.ExecInput{AckStderr: &in.AckStderr}, true
	case *bangerv1.ExecRequest_End:
		return wire.ExecInput{End: in.End}, in.End != ""
	}
	return wire.ExecInput{}, false
}

func toOutput(o wire.ExecOutput) *bangerv1.ExecResponse {
	data := func(c *wire.Chunk) *bangerv1.ExecData { return &bangerv1.ExecData{Offset: c.Off, Data: c.Data} }
	switch {
	case o.Started != nil:
		return &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Started{Started: &bangerv1.ExecStarted{Pid: o.Started.PID, StdinOffset: o.Started.StdinOff}}}
	case o.Stdout != nil:
		return &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Stdout{Stdout: data(o.Stdout)}}
	case o.Stderr != nil:
		return &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Stderr{Stderr: data(o.Stderr)}}
	case o.AckStdin != nil:
		return &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_AckStdin{AckStdin: *o.AckStdin}}
	case o.Exit != nil:
		return &bangerv1.ExecResponse{Output: &bangerv1.ExecResponse_Exit{Exit: &bangerv1.ExecExit{
			Code: o.Exit.Code, Signal: o.Exit.Signal, TimedOut: o.Exit.TimedOut, Failure: o.Exit.Failure, Message: o.Exit.Message,
		}}}
	}
	return nil
}

// chunk is how much of a stream goes into one message, in bytes.
const chunk = 64 << 10

// CopyIn unpacks a tar stream in the guest.
func (v *vmService) CopyIn(ctx context.Context, stream *connect.ClientStream[bangerv1.CopyInRequest]) (*connect.Response[bangerv1.CopyResponse], error) {
	if !stream.Receive() {
		return nil, firstMissing(stream.Err())
	}
	head := stream.Msg().GetHead()
	if head == nil {
		return nil, firstMissing(nil)
	}
	reply, err := v.s.rooms.VMs.CopyIn(ctx, head.GetVm(), wire.TarInRequest{
		Dir: head.GetDir(), Owner: head.GetKeepOwner(), MakeDir: head.GetMakeDir(), Overwrite: true,
	}, &received{next: func() ([]byte, error) {
		if !stream.Receive() {
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.CopyResponse{Entries: reply.Entries, Bytes: reply.Bytes}), nil
}

func firstMissing(err error) error {
	if err != nil {
		return err
	}
	return errs.New(errs.Invalid, "head_missing", "the first message is the head").WithHint("send the head, then data")
}

// received reads messages of bytes as one stream.
type received struct {
	next func() ([]byte, error)
	rest []byte
}

// Read gives the next bytes.
func (r *received) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		b, err := r.next()
		if err != nil {
			return 0, err
		}
		r.rest = b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// sender writes a stream as messages of bytes.
type sender func([]byte) error

// Write sends p in chunks.
func (s sender) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := min(len(p), chunk)
		if err := s(p[:n]); err != nil {
			return sent, err
		}
		sent += n
		p = p[n:]
	}
	return sent, nil
}

// CopyOut packs paths of the guest as a tar stream.
func (v *vmService) CopyOut(ctx context.Context, req *connect.Request[bangerv1.CopyOutRequest], stream *connect.ServerStream[bangerv1.CopyOutResponse]) error {
	_, err := v.s.rooms.VMs.CopyOut(ctx, req.Msg.GetVm(), wire.TarOutRequest{Dir: req.Msg.GetDir(), Paths: req.Msg.GetPaths()},
		sender(func(b []byte) error { return stream.Send(&bangerv1.CopyOutResponse{Data: b}) }))
	return err
}

// Dial joins the caller to an address inside the guest until both directions
// have ended, or either end has gone.
func (v *vmService) Dial(ctx context.Context, stream *connect.BidiStream[bangerv1.DialRequest, bangerv1.DialResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	head := first.GetHead()
	if head == nil {
		return firstMissing(nil)
	}
	conn, err := v.s.rooms.VMs.Dial(ctx, head.GetVm(), head.GetNetwork(), head.GetAddress())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		// ends with the stream: Receive fails once the handler has returned
		_, err := io.Copy(conn, &received{next: func() ([]byte, error) {
			m, err := stream.Receive()
			if err != nil {
				return nil, err
			}
			return m.GetData(), nil
		}})
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		conn.Close()
	}()
	// tell the caller that it is connected before any byte comes
	if err := stream.Send(&bangerv1.DialResponse{}); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{sender(func(b []byte) error { return stream.Send(&bangerv1.DialResponse{Data: b}) })},
		struct{ io.Reader }{conn}, make([]byte, chunk))
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil // the caller has gone, or ended its half and with it the connection
	}
	return err
}
