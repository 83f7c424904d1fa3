package ui

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Sanitize makes a string harmless to a terminal: everything that could move
// the cursor, change a title, colour or clipboard, or reorder text is shown as
// an escape (\x1b, \r, \u202e) and not sent. Newline and tab stay; bytes that
// are no UTF-8 become \xNN. The result of a sanitised string is itself.
func Sanitize(s string) string { return sanitize(s, true) }

// SanitizeLine is Sanitize for what has to stay on one line: newline and tab
// are escaped as well.
func SanitizeLine(s string) string { return sanitize(s, false) }

func sanitize(s string, lines bool) string {
	if clean(s, lines) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case harmless(r, lines):
			b.WriteString(s[i : i+n])
		default:
			writeEscape(&b, r)
		}
		i += n
	}
	return b.String()
}

func clean(s string, lines bool) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		}
		if !harmless(r, lines) {
			return false
		}
	}
	return true
}

// plainJSON writes the characters of JSON text that could drive a terminal as
// \uXXXX; what the text means stays the same. encoding/json does so only with
// some of them.
func plainJSON(b []byte) []byte {
	if clean(string(b), true) {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for _, r := range string(b) {
		switch {
		case harmless(r, true):
			out = utf8.AppendRune(out, r)
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		}
	}
	return out
}

func writeEscape(b *strings.Builder, r rune) {
	switch r {
	case '\r':
		b.WriteString(`\r`)
	case '\n':
		b.WriteString(`\n`)
	case '\t':
		b.WriteString(`\t`)
	default:
		switch {
		case r < 0x100:
			fmt.Fprintf(b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			fmt.Fprintf(b, `\U%08x`, r)
		}
	}
}

// harmless says whether a terminal only draws r. What it refuses besides C0
// and C1 are the characters that change the order or the look of others:
// bidirectional controls, line separators, invisible joiners and tags.
func harmless(r rune, lines bool) bool {
	switch {
	case r == '\n' || r == '\t':
		return lines
	case r < 0x20, r == 0x7f, r >= 0x80 && r < 0xa0:
		return false
	case r < 0x300:
		return r != 0xad // soft hyphen
	case r == 0x034f, r == 0x061c, r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r == 0x3164, r == 0xffa0:
		return false
	case r >= 0x180b && r <= 0x180f:
		return false
	case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f:
		return false
	case r == 0xfeff, r >= 0xfff0 && r <= 0xfffb:
		return false
	case r >= 0xe0000 && r <= 0xe0fff:
		return false
	}
	return true
}

// logWriter sanitises a stream on its way to a terminal. It keeps back what
// may be the beginning of a character or of a colour sequence until the rest
// has come. "\r\n" becomes "\n" and colours (SGR) are dropped, since a
// console's log is full of both.
type logWriter struct {
	w    io.Writer
	rest []byte
}

// maxKept is how much of an unfinished sequence is held back (bytes).
const maxKept = 32

func (l *logWriter) Write(p []byte) (int, error) {
	buf := append(l.rest, p...)
	keep := unfinished(buf)
	l.rest = append([]byte(nil), buf[len(buf)-keep:]...)
	if err := l.emit(buf[:len(buf)-keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close writes what was kept back.
func (l *logWriter) Close() error {
	rest := l.rest
	l.rest = nil
	return l.emit(rest)
}

func (l *logWriter) emit(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	s := strings.ReplaceAll(string(p), "\r\n", "\n")
	_, err := io.WriteString(l.w, Sanitize(dropColours(s)))
	return err
}

// unfinished gives how many bytes at the end of b may belong to something that
// is not complete yet.
func unfinished(b []byte) int {
	for k := 1; k <= min(len(b), maxKept); k++ {
		c := b[len(b)-k]
		if c == 0x1b {
			if sgrLen(string(b[len(b)-k:])) < 0 {
				return k
			}
			break
		}
	}
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return 1
	}
	for k := 1; k <= min(len(b), utf8.UTFMax-1); k++ {
		c := b[len(b)-k]
		if utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-k:]) {
				return k
			}
			break
		}
	}
	return 0
}

// sgrLen gives the length of the SGR sequence s begins with, 0 where it begins
// with something else, -1 where s ends before that is known.
func sgrLen(s string) int {
	if len(s) == 1 {
		return -1
	}
	if s[1] != '[' {
		return 0
	}
	for i := 2; i < len(s); i++ {
		switch c := s[i]; {
		case c == 'm':
			return i + 1
		case c != ';' && c != ':' && (c < '0' || c > '9'):
			return 0
		}
	}
	return -1
}

func dropColours(s string) string {
	if !strings.Contains(s, "\x1b[") {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, 0x1b)
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		if n := sgrLen(s); n > 0 {
			s = s[n:]
			continue
		}
		b.WriteByte(0x1b)
		s = s[1:]
	}
}
