package apiserver

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

// translator turns every error that leaves the daemon into one of the
// contract, at this one place.
type translator struct{ log *slog.Logger }

// WrapUnary translates a unary call's error.
func (t translator) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, t.translate(req.Spec().Procedure, err)
	}
}

// WrapStreamingClient does nothing: the daemon is no client.
func (t translator) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler translates a stream's error.
func (t translator) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return t.translate(conn.Spec().Procedure, next(ctx, conn))
	}
}

func (t translator) translate(call string, err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) && len(ce.Details()) > 0 {
		return err
	}
	out := toConnect(err)
	if errs.Is(err, errs.Internal) && ce == nil {
		t.log.Error("call failed", "call", call, "err", err)
	} else {
		t.log.Debug("call failed", "call", call, "err", err)
	}
	return out
}

// toConnect gives an error the code that fits its kind and a Failure as detail.
func toConnect(err error) *connect.Error {
	var ce *connect.Error
	var own *errs.Error
	if errors.As(err, &ce) && !errors.As(err, &own) {
		// connect's own: malformed request, message too large
		return withFailure(ce, &bangerv1.Failure{Kind: string(errs.Invalid), Code: "request_invalid", Message: ce.Message()})
	}
	if errors.Is(err, io.EOF) {
		err = errs.New(errs.Cancelled, "caller_gone", "the caller went away")
	}
	return withFailure(connect.NewError(codeOf(errs.KindOf(err)), err), &bangerv1.Failure{
		Kind: string(errs.KindOf(err)), Code: errs.CodeOf(err), Message: err.Error(), Hint: errs.HintOf(err),
	})
}

func withFailure(ce *connect.Error, f *bangerv1.Failure) *connect.Error {
	if d, err := connect.NewErrorDetail(f); err == nil {
		ce.AddDetail(d)
	}
	return ce
}

func internalError() error {
	return toConnect(errs.New(errs.Internal, "internal", "a defect of banger's; the daemon's log has more").WithHint("banger daemon logs"))
}

func codeOf(k errs.Kind) connect.Code {
	switch k {
	case errs.Invalid:
		return connect.CodeInvalidArgument
	case errs.NotFound:
		return connect.CodeNotFound
	case errs.Conflict:
		return connect.CodeFailedPrecondition
	case errs.Busy:
		return connect.CodeAborted
	case errs.Denied:
		return connect.CodePermissionDenied
	case errs.Unavailable:
		return connect.CodeUnavailable
	case errs.Unsupported:
		return connect.CodeUnimplemented
	case errs.Exhausted:
		return connect.CodeResourceExhausted
	case errs.Timeout:
		return connect.CodeDeadlineExceeded
	case errs.Cancelled:
		return connect.CodeCanceled
	}
	return connect.CodeInternal
}
