// Package ui is the only place of the CLI that writes to the user: results to
// standard output, everything else (stages, notes, warnings, errors, prompts)
// to standard error. It knows terminals, widths, locales and colours, and makes
// whatever came from a guest harmless before it reaches a terminal.
//
// It is not a parser of flags and knows nothing of VMs.
package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Options says what the user sits in front of.
type Options struct {
	In       io.Reader
	Out, Err io.Writer
	// InTTY, OutTTY and ErrTTY say which of them are terminals.
	InTTY, OutTTY, ErrTTY bool
	// Width gives the columns of the terminal now, 0 where unknown.
	Width  func() int
	Getenv func(string) string
}

// ForFiles describes a process's standard files.
func ForFiles(in, out, err *os.File, getenv func(string) string) Options {
	return Options{
		In: in, Out: out, Err: err, Getenv: getenv,
		InTTY: isTerminal(in), OutTTY: isTerminal(out), ErrTTY: isTerminal(err),
		Width: func() int {
			for _, f := range []*os.File{err, out} {
				if w, _, e := term.GetSize(int(f.Fd())); e == nil {
					return w
				}
			}
			return 0
		},
	}
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// UI writes to one user.
type UI struct {
	o       Options
	colour  bool // SGR may be used on standard error and, if a terminal, on standard output
	cursor  bool // standard error is a terminal on which lines can be redrawn
	unicode bool
	// Quiet silences everything but results and errors; Verbose shows also
	// what was quick; JSON turns results and errors into JSON.
	Quiet, Verbose, JSON bool
}

// New makes a UI.
func New(o Options) *UI {
	dumb := o.Getenv("TERM") == "dumb"
	return &UI{
		o:       o,
		colour:  o.Getenv("NO_COLOR") == "" && !dumb,
		cursor:  o.ErrTTY && !dumb,
		unicode: isUTF8(o.Getenv),
	}
}

// isUTF8 follows the order of setlocale(3) for LC_CTYPE.
func isUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(getenv(name)); v != "" {
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// Out is standard output, raw: for the bytes of a command or of a file that
// the user asked for.
func (u *UI) Out() io.Writer { return u.o.Out }

// ErrOut is standard error, raw: for a command's own.
func (u *UI) ErrOut() io.Writer { return u.o.Err }

// In is standard input.
func (u *UI) In() io.Reader { return u.o.In }

// InTTY, OutTTY and ErrTTY say what are terminals.
func (u *UI) InTTY() bool { return u.o.InTTY }

// OutTTY says whether standard output is a terminal.
func (u *UI) OutTTY() bool { return u.o.OutTTY }

// ErrTTY says whether standard error is a terminal.
func (u *UI) ErrTTY() bool { return u.o.ErrTTY }

// LogWriter is standard output for lines that a guest wrote: sanitised where
// it is a terminal, as they are otherwise. Close it to get the last bytes.
func (u *UI) LogWriter() io.WriteCloser {
	if !u.o.OutTTY {
		return nopCloser{u.o.Out}
	}
	return &logWriter{w: u.o.Out}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Print writes a result's line (or lines) to standard output.
func (u *UI) Print(format string, args ...any) error {
	_, err := io.WriteString(u.o.Out, u.text(fmt.Sprintf(format, args...))+"\n")
	return err
}

// JSONValue writes a result as indented JSON.
func (u *UI) JSONValue(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = u.o.Out.Write(append(plainJSON(b), '\n'))
	return err
}

// JSONLine writes one object of a stream.
func (u *UI) JSONLine(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = u.o.Out.Write(append(plainJSON(b), '\n'))
	return err
}

// Note says one line on standard error, unless quiet.
func (u *UI) Note(format string, args ...any) {
	if !u.Quiet && !u.JSON {
		u.say(u.line(fmt.Sprintf(format, args...)))
	}
}

// Detail is a Note that only -v shows.
func (u *UI) Detail(format string, args ...any) {
	if u.Verbose {
		u.Note(format, args...)
	}
}

// Warn says one line that matters on standard error, unless quiet.
func (u *UI) Warn(format string, args ...any) {
	if u.Quiet {
		return
	}
	u.say(u.paint(yellow, "warning:") + " " + u.line(fmt.Sprintf(format, args...)))
}

// say writes one line to standard error. There is nobody to tell when that
// fails.
func (u *UI) say(s string) { _, _ = io.WriteString(u.o.Err, s+"\n") }

// text makes text ready for the user's locale and terminal; it may have
// several lines.
func (u *UI) text(s string) string {
	if !u.o.OutTTY {
		return s
	}
	return u.localise(Sanitize(s))
}

// line is text for standard error that must stay on one line.
func (u *UI) line(s string) string { return u.localise(SanitizeLine(s)) }

var asciiMarks = strings.NewReplacer(
	"✓", "ok", "✗", "x", "→", "->", "·", "-", "…", "...", "–", "-", "×", "x", "—", "-")

// localise replaces what a locale without UTF-8 cannot show.
func (u *UI) localise(s string) string {
	if u.unicode {
		return s
	}
	s = asciiMarks.Replace(s)
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 {
			b.WriteRune(r)
		} else {
			writeEscape(&b, r)
		}
	}
	return b.String()
}

type shade string

const (
	red    shade = "31"
	green  shade = "32"
	yellow shade = "33"
	bold   shade = "1"
	dim    shade = "2"
)

// paint colours banger's own words on standard error.
func (u *UI) paint(c shade, s string) string {
	if !u.colour || !u.o.ErrTTY {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// paintOut colours banger's own words on standard output.
func (u *UI) paintOut(c shade, s string) string {
	if !u.colour || !u.o.OutTTY {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// width is the columns of the terminal, 80 where unknown.
func (u *UI) width() int {
	if u.o.Width != nil {
		if w := u.o.Width(); w > 0 {
			return w
		}
	}
	return 80
}
