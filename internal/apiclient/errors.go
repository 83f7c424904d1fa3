package apiclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

const (
	codeNotRunning = "daemon_not_running"
	codeLost       = "daemon_connection_lost"
)

// Translate turns an error of a call into an *errs.Error: the daemon's own
// with the kind, code and hint it sent, a lost or refused connection with what
// to do. It leaves nil and what is translated already alone.
func Translate(err error) error {
	var e *errs.Error
	if err == nil || errors.Is(err, io.EOF) || errors.As(err, &e) || isOutput(err) {
		return err
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if v, derr := d.Value(); derr == nil {
				if f, ok := v.(*bangerv1.Failure); ok {
					return fromFailure(f)
				}
			}
		}
	}
	if local := fromTransport(err); local != nil {
		return local
	}
	if ce == nil {
		return err
	}
	return &errs.Error{Kind: kindOfCode(ce.Code()), Code: strings.ReplaceAll(ce.Code().String(), " ", "_"), Msg: ce.Message()}
}

func fromFailure(f *bangerv1.Failure) error {
	kind := errs.Kind(f.GetKind())
	for _, k := range errs.Kinds() {
		if k == kind {
			return &errs.Error{Kind: kind, Code: f.GetCode(), Msg: f.GetMessage(), Hint: f.GetHint()}
		}
	}
	return &errs.Error{Kind: errs.Internal, Code: f.GetCode(), Msg: f.GetMessage(), Hint: f.GetHint()}
}

// fromTransport knows the failures that happen on the way; nil for others.
func fromTransport(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return &errs.Error{Kind: errs.Cancelled, Code: "cancelled", Msg: "interrupted"}
	case errors.Is(err, context.DeadlineExceeded):
		return &errs.Error{Kind: errs.Timeout, Code: "deadline_exceeded", Msg: "bangerd did not answer in time"}
	case errors.Is(err, fs.ErrPermission):
		return errs.New(errs.Denied, "daemon_denied", "bangerd's socket belongs to another user").WithHint("banger daemon status")
	case errors.As(err, &op) && op.Op == "dial" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return errs.New(errs.Unavailable, codeNotRunning, "bangerd is not running").WithHint("banger daemon start")
	case isLost(err):
		return errs.New(errs.Unavailable, codeLost, "the connection to bangerd broke").WithHint("banger daemon status; VMs run on, so try again").Because(err)
	}
	return nil
}

func isLost(err error) bool {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	var ce *connect.Error
	if !errors.As(err, &ce) || connect.IsWireError(err) {
		return false
	}
	switch ce.Code() {
	case connect.CodeUnavailable:
		return true
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeInvalidArgument:
		// net/http's HTTP/2 has no exported errors for a connection that died
		m := ce.Message()
		for _, s := range []string{"unexpected EOF", "connection lost", "connection reset", "broken pipe", "GOAWAY", "use of closed", "stream error", "stream ID", "http2:"} {
			if strings.Contains(m, s) {
				return true
			}
		}
	}
	return false
}

// Lost says that the connection broke, as against: the daemon said no.
func Lost(err error) bool {
	switch errs.CodeOf(Translate(err)) {
	case codeLost, codeNotRunning:
		return true
	}
	return false
}

func kindOfCode(c connect.Code) errs.Kind {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return errs.Invalid
	case connect.CodeNotFound:
		return errs.NotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return errs.Conflict
	case connect.CodeAborted:
		return errs.Busy
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return errs.Denied
	case connect.CodeUnavailable:
		return errs.Unavailable
	case connect.CodeUnimplemented:
		return errs.Unsupported
	case connect.CodeResourceExhausted:
		return errs.Exhausted
	case connect.CodeDeadlineExceeded:
		return errs.Timeout
	case connect.CodeCanceled:
		return errs.Cancelled
	}
	return errs.Internal
}

// translator translates errors of every call and traces it.
type translator struct{ trace func(string) }

func (t translator) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		start := time.Now()
		resp, err := next(ctx, req)
		t.tell(req.Spec(), start, err)
		return resp, Translate(err)
	}
}

func (t translator) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		t.tell(spec, time.Now(), nil)
		return next(ctx, spec)
	}
}

func (t translator) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (t translator) tell(spec connect.Spec, start time.Time, err error) {
	if t.trace == nil {
		return
	}
	name := strings.TrimPrefix(spec.Procedure, "/banger.v1.")
	if spec.StreamType != connect.StreamTypeUnary {
		t.trace(name + " (stream)")
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = errs.CodeOf(Translate(err))
	}
	t.trace(fmt.Sprintf("%s %s %s", name, time.Since(start).Round(10*time.Microsecond), outcome))
}
