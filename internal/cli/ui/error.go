package ui

import (
	"encoding/json"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// Failure is an error as --json and the schema show it.
type Failure struct {
	Kind      string `json:"kind" doc:"what sort of failure; see error_kinds of the schema"`
	Code      string `json:"code" doc:"stable name of the situation"`
	Message   string `json:"message" doc:"one line: what failed, on what, why"`
	Hint      string `json:"hint,omitempty" doc:"one line: what to do"`
	Retryable bool   `json:"retryable" doc:"whether trying the same again can help"`
}

// FailureOf describes an error.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	k := errs.KindOf(err)
	return &Failure{Kind: string(k), Code: errs.CodeOf(err), Message: message(err), Hint: errs.HintOf(err), Retryable: k.Retryable()}
}

// Error shows a failure on standard error: one line that says what failed, and
// what to do, indented, beneath it. It is shown however quiet the UI is.
func (u *UI) Error(err error) {
	if u.JSON {
		b, e := json.Marshal(map[string]*Failure{"error": FailureOf(err)})
		if e == nil {
			u.say(string(plainJSON(b)))
			return
		}
	}
	u.say(u.paint(red, "error:") + " " + u.line(message(err)))
	for _, l := range strings.Split(strings.TrimSpace(errs.HintOf(err)), "\n") {
		if l = strings.TrimSpace(l); l != "" {
			u.say("  " + u.line(l))
		}
	}
}

// message is the error's text on one line, without the same words twice
// ("a: b: b" is "a: b").
func message(err error) string {
	s := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", " ")), " ")
	parts := strings.Split(s, ": ")
	out := parts[:1]
	for _, p := range parts[1:] {
		if p != out[len(out)-1] {
			out = append(out, p)
		}
	}
	return strings.Join(out, ": ")
}
