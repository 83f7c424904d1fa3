package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLine is the longest line taken from the other side. QEMU's longest
// honest answers (query-qmp-schema, which is never asked for) stay below it.
const maxLine = 128 << 10

// Error is a command's failure as QEMU tells it.
type Error struct {
	Class string // "GenericError", "CommandNotFound", ...
	Desc  string // one line, bounded, without control characters
}

// Error gives the description.
func (e *Error) Error() string { return e.Desc }

// Event is something that happened in the machine.
type Event struct {
	Name string
	Data json.RawMessage
}

// message is any line that QEMU may send; exactly one part of it is set.
type message struct {
	greeting *greeting
	event    *Event
	answer   *answer
}

type greeting struct{ Version string }

type answer struct {
	id     uint64
	result json.RawMessage
	err    *Error
}

// decode reads one line. What it gives holds no reference to line.
func decode(line []byte) (message, error) {
	var w struct {
		QMP *struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int }
			}
		}
		Event  *string         `json:"event"`
		Data   json.RawMessage `json:"data"`
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
		ID json.RawMessage `json:"id"`
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, fmt.Errorf("not a QMP message: %w", err)
	}
	switch {
	case w.QMP != nil:
		v := w.QMP.Version.QEMU
		return message{greeting: &greeting{Version: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)}}, nil
	case w.Event != nil:
		return message{event: &Event{Name: *w.Event, Data: bytes.Clone(w.Data)}}, nil
	case w.Error == nil && w.Return == nil:
		return message{}, errors.New("not a QMP message: no known member")
	}
	a := &answer{result: bytes.Clone(w.Return)}
	if w.Error != nil {
		a.result = nil
		a.err = &Error{Class: oneLine(w.Error.Class, 64), Desc: oneLine(w.Error.Desc, 512)}
	}
	// An answer to something that was not understood has no id; 0 is
	// nobody's.
	if w.ID != nil {
		if err := json.Unmarshal(w.ID, &a.id); err != nil {
			return message{}, fmt.Errorf("an answer to nobody: %w", err)
		}
	}
	return message{answer: a}, nil
}

// oneLine makes what QEMU wrote fit for a message: it may repeat what a guest
// wrote.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// readLine gives the next line without its end, valid until the next call; a
// line longer than the reader's buffer is an error, not an allocation.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("a line longer than %d bytes", r.Size())
	}
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}
