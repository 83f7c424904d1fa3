package ui

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

// hostile is what a guest may say to a terminal; beside it what a person sees.
var hostile = []struct{ name, in, want string }{
	{"nul", "a\x00b", `a\x00b`},
	{"start of heading", "\x01", `\x01`},
	{"end of text", "\x03", `\x03`},
	{"end of transmission", "\x04", `\x04`},
	{"answerback", "\x05", `\x05`},
	{"bell", "\a", `\x07`},
	{"backspace over", "rm\b\bls", `rm\x08\x08ls`},
	{"vertical tab", "\v", `\x0b`},
	{"form feed", "\f", `\x0c`},
	{"carriage return over", "safe\revil", `safe\revil`},
	{"shift out", "\x0e", `\x0e`},
	{"shift in", "\x0f", `\x0f`},
	{"data link escape", "\x10", `\x10`},
	{"xon", "\x11", `\x11`},
	{"xoff", "\x13", `\x13`},
	{"cancel", "\x18", `\x18`},
	{"substitute", "\x1a", `\x1a`},
	{"escape alone", "\x1b", `\x1b`},
	{"file separator", "\x1c", `\x1c`},
	{"unit separator", "\x1f", `\x1f`},
	{"delete", "\x7f", `\x7f`},
	{"red", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
	{"clear screen", "\x1b[2J", `\x1b[2J`},
	{"cursor home", "\x1b[H", `\x1b[H`},
	{"cursor up", "\x1b[1A", `\x1b[1A`},
	{"erase line", "\x1b[2K", `\x1b[2K`},
	{"insert line", "\x1b[1L", `\x1b[1L`},
	{"scroll region", "\x1b[1;5r", `\x1b[1;5r`},
	{"alternate screen", "\x1b[?1049h", `\x1b[?1049h`},
	{"hide cursor", "\x1b[?25l", `\x1b[?25l`},
	{"mouse on", "\x1b[?1003h", `\x1b[?1003h`},
	{"bracketed paste off", "\x1b[?2004l", `\x1b[?2004l`},
	{"device attributes", "\x1b[c", `\x1b[c`},
	{"cursor report", "\x1b[6n", `\x1b[6n`},
	{"window title report", "\x1b[21t", `\x1b[21t`},
	{"window resize", "\x1b[8;1;1t", `\x1b[8;1;1t`},
	{"soft reset", "\x1b[!p", `\x1b[!p`},
	{"full reset", "\x1bc", `\x1bc`},
	{"save cursor", "\x1b7", `\x1b7`},
	{"restore cursor", "\x1b8", `\x1b8`},
	{"reverse index", "\x1bM", `\x1bM`},
	{"graphics set", "\x1b(0", `\x1b(0`},
	{"keypad", "\x1b=", `\x1b=`},
	{"title, bell", "\x1b]0;pwned\a", `\x1b]0;pwned\x07`},
	{"title, st", "\x1b]2;pwned\x1b\\", `\x1b]2;pwned\x1b\`},
	{"palette", "\x1b]4;1;rgb:00/00/00\a", `\x1b]4;1;rgb:00/00/00\x07`},
	{"cwd", "\x1b]7;file://h/etc\a", `\x1b]7;file://h/etc\x07`},
	{"link", "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\", `\x1b]8;;http://evil\x1b\x\x1b]8;;\x1b\`},
	{"notify", "\x1b]9;hi\a", `\x1b]9;hi\x07`},
	{"foreground query", "\x1b]10;?\a", `\x1b]10;?\x07`},
	{"clipboard", "\x1b]52;c;ZXZpbA==\a", `\x1b]52;c;ZXZpbA==\x07`},
	{"rxvt notify", "\x1b]777;notify;a;b\a", `\x1b]777;notify;a;b\x07`},
	{"iterm file", "\x1b]1337;File=:AA\a", `\x1b]1337;File=:AA\x07`},
	{"sixel", "\x1bPq#0\x1b\\", `\x1bPq#0\x1b\`},
	{"decrqss", "\x1bP$qm\x1b\\", `\x1bP$qm\x1b\`},
	{"tmux passthrough", "\x1bPtmux;\x1b\x1b]0;x\a\x1b\\", `\x1bPtmux;\x1b\x1b]0;x\x07\x1b\`},
	{"application command", "\x1b_Gi=1\x1b\\", `\x1b_Gi=1\x1b\`},
	{"privacy message", "\x1b^x\x1b\\", `\x1b^x\x1b\`},
	{"screen title", "\x1bkx\x1b\\", `\x1bkx\x1b\`},
	{"c1 csi as rune", "\u009b2J", `\x9b2J`},
	{"c1 osc as rune", "\u009d0;x\u009c", `\x9d0;x\x9c`},
	{"c1 dcs as rune", "\u0090q", `\x90q`},
	{"c1 next line", "a\u0085b", `a\x85b`},
	{"c1 csi as byte", "\x9b2J", `\x9b2J`},
	{"c1 osc as byte", "\x9d0;x\x9c", `\x9d0;x\x9c`},
	{"overlong escape", "\xc0\x9b", `\xc0\x9b`},
	{"cut off rune", "\xe2\x82", `\xe2\x82`},
	{"surrogate", "\xed\xa0\x80", `\xed\xa0\x80`},
	{"right to left override", "a\u202egpj.exe", `a\u202egpj.exe`},
	{"left to right override", "\u202d", `\u202d`},
	{"embedding", "\u202a\u202b\u202c", `\u202a\u202b\u202c`},
	{"isolates", "\u2066\u2067\u2068\u2069", `\u2066\u2067\u2068\u2069`},
	{"marks", "\u200e\u200f\u061c", `\u200e\u200f\u061c`},
	{"line separator", "a\u2028b\u2029c", `a\u2028b\u2029c`},
	{"zero width", "a\u200bb\u200cc\u200dd", `a\u200bb\u200cc\u200dd`},
	{"byte order mark", "\ufeffx", `\ufeffx`},
	{"soft hyphen", "a\u00adb", `a\xadb`},
	{"tag letters", "\U000e0041", `\U000e0041`},
	{"hangul filler", "\u3164", `\u3164`},
	{"plain", "héllo, wörld ✓ 日本", "héllo, wörld ✓ 日本"},
	{"lines stay", "a\tb\nc", "a\tb\nc"},
	{"replacement stays", "\ufffd", "\ufffd"},
}

func TestGuestTextCannotDriveTheTerminal(t *testing.T) {
	if len(hostile) < 60 {
		t.Fatalf("only %d sequences in the table", len(hostile))
	}
	for _, c := range hostile {
		if got := Sanitize(c.in); got != c.want {
			t.Errorf("%s: %q became %q, want %q", c.name, c.in, got, c.want)
		}
	}
}

func TestALineStaysALine(t *testing.T) {
	if got := SanitizeLine("a\nb\tc"); got != `a\nb\tc` {
		t.Errorf("got %q", got)
	}
}

func TestLogsLoseColoursAndNothingElse(t *testing.T) {
	in := "[\x1b[0;32m  OK  \x1b[0m] Started é\r\n\x1b]0;t\a\x1b[2J\x1b[1\rx\x1b"
	want := "[  OK  ] Started é\n" + `\x1b]0;t\x07\x1b[2J\x1b[1\rx\x1b`
	for size := 1; size <= len(in); size++ {
		var out bytes.Buffer
		w := &logWriter{w: &out}
		for i := 0; i < len(in); i += size {
			if _, err := w.Write([]byte(in[i:min(len(in), i+size)])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Fatalf("in pieces of %d: %q, want %q", size, out.String(), want)
		}
	}
}

func TestAnEndlessSequenceIsNotKeptForEver(t *testing.T) {
	w := &logWriter{w: &bytes.Buffer{}}
	for range 1000 {
		w.Write([]byte("\x1b[1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1;1"))
		if len(w.rest) > maxKept+64 {
			t.Fatalf("%d bytes kept back", len(w.rest))
		}
	}
}

func FuzzSanitize(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Sanitize(s)
		if !utf8.ValidString(got) {
			t.Fatalf("%q gave invalid UTF-8 %q", s, got)
		}
		for _, r := range got {
			if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e {
				t.Fatalf("%q let %U through", s, r)
			}
		}
		if Sanitize(got) != got {
			t.Fatalf("%q is not stable", got)
		}
		if strings.ContainsAny(SanitizeLine(s), "\n\t") {
			t.Fatalf("%q leaves its line", s)
		}
		var out bytes.Buffer
		w := &logWriter{w: &out}
		for i := range len(s) {
			w.Write([]byte{s[i]})
		}
		w.Close()
		for _, r := range out.String() {
			if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("log of %q let %U through", s, r)
			}
		}
	})
}
