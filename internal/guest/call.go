package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/mux"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// idle bounds a reply whose first byte has come.
const idle = 30 * time.Second

// Bounds of what a guest says of itself, in bytes.
const (
	maxWord    = 256
	maxLine    = 4 << 10
	maxEntries = 256
)

// begin opens a stream with a request on it. The stream is reset when ctx
// ends, until stop is called.
func (c *Client) begin(ctx context.Context, method wire.Method, req wire.Message, last bool) (*mux.Stream, func() bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	b, err := wire.AppendMessage(nil, wire.KindRequest, &wire.Request{Method: method, Message: req})
	if err != nil {
		return nil, nil, errs.Wrap(err, errs.Invalid, "guest_request", "ask the guest to %s", method)
	}
	st, err := c.session.Open()
	if err != nil {
		return nil, nil, c.explain(err)
	}
	stop := st.ResetOn(ctx)
	if last {
		_, err = st.WriteLast(b)
	} else {
		_, err = st.Write(b)
	}
	// The guest may refuse before it has read all: its answer counts then.
	if err != nil && !errors.Is(err, mux.ErrStopped) {
		stop()
		st.Close()
		return nil, nil, c.ended(ctx, err)
	}
	return st, stop, nil
}

// ended explains a stream's error; the caller's own giving up comes first.
func (c *Client) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.explain(err)
}

// call does one unary method. First bounds the wait for the first byte of the
// answer; 0 leaves that to ctx.
func (c *Client) call(ctx context.Context, method wire.Method, req, reply wire.Message, first time.Duration) error {
	if first > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, first+idle, noAnswer(method))
		defer cancel()
	}
	st, stop, err := c.begin(ctx, method, req, true)
	if err != nil {
		return err
	}
	defer st.Close()
	defer stop()
	if first > 0 {
		_ = st.SetReadDeadline(time.Now().Add(first))
	}
	return c.answer(ctx, method, st, reply)
}

func noAnswer(method wire.Method) error {
	return errs.New(errs.Timeout, "guest_no_answer", "the guest's agent did not answer to %s in time", method)
}

// answer reads the one message that a unary method ends with.
func (c *Client) answer(ctx context.Context, method wire.Method, st *mux.Stream, reply wire.Message) error {
	kind, body, err := wire.ReadMessage(&patient{st: st})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return noAnswer(method)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return c.ended(ctx, fmt.Errorf("%w: no answer to %s", ErrMisbehaved, method))
	case err != nil:
		return c.ended(ctx, err)
	}
	return c.explain(settle(kind, body, reply))
}

// settle decodes a last message: a reply or an error.
func settle(kind wire.Kind, body []byte, reply wire.Message) error {
	switch kind {
	case wire.KindError:
		var e wire.Error
		if err := wire.Decode(body, &e); err != nil {
			return err
		}
		return guestError(&e)
	case wire.KindReply:
		return wire.Decode(body, reply)
	}
	return fmt.Errorf("%w: message of kind %d in place of an answer", ErrMisbehaved, kind)
}

// patient moves a stream's deadline on once the first byte has come.
type patient struct {
	st    *mux.Stream
	begun bool
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.st.Read(b)
	if n > 0 && !p.begun {
		p.begun = true
		_ = p.st.SetReadDeadline(time.Now().Add(idle))
	}
	return n, err
}

// guestError takes over what an agent says of a failure. Kind and code are
// believed only as words that exist; the text is made harmless.
func guestError(e *wire.Error) error {
	kind := errs.Kind(e.Kind)
	if !slices.Contains(errs.Kinds(), kind) {
		kind = errs.Internal
	}
	code := e.Code
	if !isCode(code) {
		code = "guest_" + string(kind)
	}
	msg := clean(e.Message, maxLine)
	if msg == "" {
		msg = "the guest gave no reason"
	}
	return errs.New(kind, code, "%s", msg)
}

func isCode(s string) bool {
	for _, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// clean makes one harmless line of a guest's text: no control characters, no
// marks that turn the direction of text around, at most limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case r == unicode.ReplacementChar, unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r),
			r == '\u2028', r == '\u2029':
			return -1
		}
		return r
	}, s)
}

func checkHello(r *wire.HelloReply) error {
	switch r.State {
	case "early", "init", "alone":
	default:
		return fmt.Errorf("%w: unknown state", ErrMisbehaved)
	}
	for _, s := range []*string{&r.BootID, &r.Agent, &r.Kernel, &r.Clock} {
		*s = clean(*s, maxWord)
	}
	r.Proof = nil
	return nil
}

func cleanIdentity(r *wire.IdentityReply) {
	r.Steps = r.Steps[:min(len(r.Steps), maxEntries)]
	for i := range r.Steps {
		r.Steps[i].Name = clean(r.Steps[i].Name, maxWord)
	}
	r.Warnings = cleanAll(r.Warnings)
}

func cleanWait(r *wire.WaitReply) {
	r.State = clean(r.State, maxWord)
	r.Failed = cleanAll(r.Failed)
}

func cleanAll(list []string) []string {
	list = list[:min(len(list), maxEntries)]
	for i := range list {
		list[i] = clean(list[i], maxLine)
	}
	return list
}
