// Package errs gives every failure of banger a kind, a stable code and a next
// step. It is the only place that knows how a kind becomes an exit status; the
// API carries kind, code and hint, and the CLI prints them.
//
// It is not a logging or wrapping library: plain wrapping is fmt.Errorf with
// %w, and an *Error found anywhere in the chain decides kind, code and hint.
package errs

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what sort of failure happened, and so what a caller can do.
type Kind string

// The kinds of failure. Each has one exit status (see ExitStatus).
const (
	Invalid     Kind = "invalid"     // wrong usage or a bad value; trying again does not help
	NotFound    Kind = "not_found"   // no such VM, image, kernel, template
	Conflict    Kind = "conflict"    // exists already, in use, or in a state that forbids the verb
	Busy        Kind = "busy"        // another operation holds the VM; trying again helps
	Denied      Kind = "denied"      // the caller may not
	Unavailable Kind = "unavailable" // daemon, guest or registry does not answer; trying again may help
	Unsupported Kind = "unsupported" // this host, driver or build cannot do it
	Exhausted   Kind = "exhausted"   // no disk space, memory or other host resource
	Timeout     Kind = "timeout"     // a limit passed
	Cancelled   Kind = "cancelled"   // the caller gave up
	Internal    Kind = "internal"    // a defect of banger
)

// Kinds lists every kind, for the schema and for tests that walk them.
func Kinds() []Kind {
	return []Kind{Invalid, NotFound, Conflict, Busy, Denied, Unavailable, Unsupported, Exhausted, Timeout, Cancelled, Internal}
}

// Retryable says whether trying the same call again can help.
func (k Kind) Retryable() bool {
	switch k {
	case Busy, Unavailable, Timeout, Exhausted:
		return true
	}
	return false
}

// ExitStatus is the CLI's status for verbs that do not pass a guest command's
// status through; run, exec, shell and ssh use 125 for all of them.
func (k Kind) ExitStatus() int {
	switch k {
	case Invalid:
		return 2
	case NotFound:
		return 3
	case Conflict, Busy:
		return 4
	case Unsupported, Exhausted:
		return 5
	case Timeout:
		return 6
	case Cancelled:
		return 130
	}
	return 1
}

// Error is a failure with a kind, a stable code and a hint.
type Error struct {
	Kind Kind
	// Code is stable and unique to the situation, lower_snake_case
	// ("vm_name_taken"); programs branch on it.
	Code string
	// Msg is one line, lower case: what failed, on what, why.
	Msg string
	// Hint is one imperative line with a command, or "".
	Hint string
	// Err is the cause, or nil. It is printed after Msg.
	Err error
}

// Error gives "msg: cause" on one line.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	if e.Msg == "" {
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of a kind with a stable code.
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of a kind around a cause; it is nil when err is nil.
func Wrap(err error, kind Kind, code, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Code: code, Msg: fmt.Sprintf(format, args...), Err: err}
}

// WithHint returns e with a next step.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Because returns e with a cause.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// KindOf finds the kind of an error chain; contexts' errors have theirs, and
// what nobody classified is Internal. It is "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Cancelled
	}
	return Internal
}

// CodeOf finds the stable code of an error chain, "internal" where there is none.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	if k := KindOf(err); k != "" {
		return string(k)
	}
	return ""
}

// HintOf finds the first hint of an error chain.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// Is reports whether the chain has the kind.
func Is(err error, kind Kind) bool { return KindOf(err) == kind }
