package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/banger-dev/banger/internal/errs"
)

// user is a UI whose output is kept.
type user struct {
	*UI
	out, err bytes.Buffer
}

func newUser(tty bool, width int, env map[string]string, in string) *user {
	t := &user{}
	t.UI = New(Options{
		In: strings.NewReader(in), Out: &t.out, Err: &t.err,
		InTTY: tty, OutTTY: tty, ErrTTY: tty,
		Width: func() int { return width }, Getenv: func(k string) string { return env[k] },
	})
	return t
}

var utf8Env = map[string]string{"LANG": "C.UTF-8"}

func TestErrorsSayWhatAndWhatToDo(t *testing.T) {
	cause := errs.New(errs.NotFound, "vm_not_found", `no VM named "wbe"`).WithHint("did you mean \"web\"?  (banger ps -a lists all)")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"hint", cause, "error: no VM named \"wbe\"\n  did you mean \"web\"?  (banger ps -a lists all)\n"},
		{"two lines of hint", errs.New(errs.Timeout, "x", "late").WithHint("last console line: x\x1b[2J\nbanger logs web"), "error: late\n  last console line: x\\x1b[2J\n  banger logs web\n"},
		{"no hint", errors.New("a"), "error: a\n"},
		{"same words twice", fmt.Errorf("cannot read: %w", fmt.Errorf("cannot read: %w", errors.New("gone"))), "error: cannot read: gone\n"},
		{"several lines", errors.New("a\nb\r\nc"), "error: a b c\n"},
	} {
		u := newUser(false, 80, utf8Env, "")
		u.Quiet = true
		u.Error(c.err)
		if u.err.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, u.err.String(), c.want)
		}
	}
	u := newUser(false, 80, utf8Env, "")
	u.JSON = true
	u.Error(cause)
	if want := `{"error":{"kind":"not_found","code":"vm_not_found","message":"no VM named \"wbe\"","hint":"did you mean \"web\"?  (banger ps -a lists all)","retryable":false}}` + "\n"; u.err.String() != want {
		t.Errorf("json: %s", u.err.String())
	}
}

func TestColoursOnlyWhereTheyAreWanted(t *testing.T) {
	for _, c := range []struct {
		name string
		tty  bool
		env  map[string]string
		want bool
	}{
		{"terminal", true, utf8Env, true},
		{"pipe", false, utf8Env, false},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, false},
		{"dumb", true, map[string]string{"TERM": "dumb"}, false},
	} {
		u := newUser(c.tty, 80, c.env, "")
		u.Error(errors.New("x"))
		if got := strings.Contains(u.err.String(), "\x1b["); got != c.want {
			t.Errorf("%s: colours %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTables(t *testing.T) {
	u := newUser(true, 80, utf8Env, "")
	u.colour = false
	err := u.Table([]Column{{"NAME", Left}, {"PORTS", Left}, {"CPU", Right}, {"UP", Left}}, [][]string{
		{"web", "", "2", "12m"}, {"日本", "", "10", ""}, {"evil\x1b[2J\n", "", "1", ""}})
	want := "NAME           CPU  UP\nweb              2  12m\n日本            10\nevil\\x1b[2J\\n    1\n"
	if err != nil || u.out.String() != want {
		t.Errorf("%v\n%s", err, u.out.String())
	}
}

func TestSizesAndTimesAsPeopleSayThem(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1023: "1023B", 14 << 20: "14M", 212 << 20: "212M", 2 << 30: "2.0G", 1181116006: "1.1G", 57 << 30: "57G"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{100 * time.Millisecond: "0.1s", 14 * time.Second: "14s", 125 * time.Second: "2m05s", 62 * time.Minute: "1h02m", 9990 * time.Millisecond: "10s", 59700 * time.Millisecond: "1m00s"} {
		if got := Elapsed(d); got != want {
			t.Errorf("Elapsed(%v) = %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{8 * time.Second: "8s", 12 * time.Minute: "12m", 50 * time.Hour: "2d", 47 * time.Hour: "47h", -time.Second: "0s"} {
		if got := Age(d); got != want {
			t.Errorf("Age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestConfirmAsksOnlyOnATerminal(t *testing.T) {
	for _, c := range []struct {
		tty    bool
		answer string
		ok     bool
	}{{true, "y\n", true}, {true, "YES\n", true}, {true, "\n", false}, {true, "n\n", false}, {true, "", false}, {false, "", true}} {
		u := newUser(c.tty, 80, utf8Env, c.answer)
		err := u.Confirm(t.Context(), `delete "web"?`)
		if (err == nil) != c.ok {
			t.Errorf("terminal %v, %q: %v", c.tty, c.answer, err)
		}
		if asked := strings.Contains(u.err.String(), `delete "web"? [y/N]`); asked != c.tty {
			t.Errorf("terminal %v: asked %v", c.tty, asked)
		}
		if err != nil && !errs.Is(err, errs.Cancelled) {
			t.Errorf("kind %s", errs.KindOf(err))
		}
	}
}

func TestJSONCannotDriveTheTerminal(t *testing.T) {
	for _, c := range hostile {
		u := newUser(true, 80, utf8Env, "")
		if err := errors.Join(u.JSONValue(map[string]string{"x": c.in}), u.JSONLine(c.in)); err != nil {
			t.Fatal(err)
		}
		u.JSON = true
		u.Error(errors.New(c.in))
		for _, r := range u.out.String() + u.err.String() {
			if r != '\n' && !harmless(r, true) {
				t.Errorf("%s: %U got through", c.name, r)
			}
		}
		var back map[string]string
		if err := json.NewDecoder(&u.out).Decode(&back); err != nil || back["x"] != strings.ToValidUTF8(c.in, "\ufffd") && utf8.ValidString(c.in) {
			t.Errorf("%s: %q came back, %v", c.name, back["x"], err)
		}
	}
}

func TestQuickWorkIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tty := range []bool{true, false} {
			u := newUser(tty, 80, utf8Env, "")
			s := u.Stages()
			s.Event(Event{Stage: "clone", Status: "started"})
			time.Sleep(300 * time.Millisecond)
			s.Event(Event{Stage: "clone", Status: "done"})
			s.Close()
			s.Close()
			if u.err.Len() > 0 {
				t.Errorf("terminal %v: said %q", tty, u.err.String())
			}
		}
	})
}

func TestLongWorkShowsOneLineAStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUser(false, 80, utf8Env, "")
		s := u.Stages()
		s.Event(Event{Stage: "kernel", Status: "done", Message: "generic-6.12", Elapsed: 200 * time.Millisecond})
		s.Event(Event{Stage: "image", Status: "started", Message: "making debian-bookworm"})
		time.Sleep(25 * time.Second)
		s.Event(Event{Stage: "image", Status: "progress", Done: 50, Total: 100, Unit: "packages"})
		s.Event(Event{Stage: "image", Status: "done", Message: "348 packages\x1b[2J"})
		s.Event(Event{Stage: "boot", Status: "started", Message: "waiting for the guest"})
		s.Event(Event{Stage: "boot", Status: "failed", Message: "no answer", Elapsed: time.Minute})
		s.Close()
		want := ` ✓ kernel         generic-6.12  0.2s
   image          making debian-bookworm  10s
   image          making debian-bookworm  20s
 ✓ image          348 packages\x1b[2J  25s
 ✗ boot           waiting for the guest  1m00s
`
		if u.err.String() != want {
			t.Errorf("got:\n%s\nwant:\n%s", u.err.String(), want)
		}
	})
}

func TestATerminalIsRedrawnAndLeftClean(t *testing.T) {
	for _, width := range []int{10, 24, 80, 200} {
		synctest.Test(t, func(t *testing.T) {
			u := newUser(true, width, utf8Env, "")
			s := u.Stages()
			s.Event(Event{Stage: "image", Status: "started", Message: strings.Repeat("long ", 60)})
			time.Sleep(time.Second)
			s.Event(Event{Stage: "image", Status: "progress", Done: 512, Total: 1024, Unit: "bytes"})
			s.Event(Event{Stage: "image", Status: "done", Message: "made"})
			s.Event(Event{Stage: "boot", Status: "started"})
			time.Sleep(time.Second)
			s.Close()
			lines, longest := screen(u.err.String())
			if len(lines) != 1 || !strings.Contains(lines[0], "image") {
				t.Errorf("width %d: left on screen: %q", width, lines)
			}
			if longest >= width {
				t.Errorf("width %d: a line of %d columns wraps", width, longest)
			}
		})
	}
}

// screen plays the few sequences that Stages writes and gives what stays, and
// the longest line that was ever there.
func screen(s string) (lines []string, longest int) {
	row := 0
	for s != "" {
		switch {
		case strings.HasPrefix(s, "\x1b["):
			end := strings.IndexAny(s, "AJm")
			var n int
			fmt.Sscanf(s[2:end], "%d", &n)
			switch s[end] {
			case 'A':
				row -= n
			case 'J':
				lines = lines[:row]
			}
			s = s[end+1:]
		case s[0] == '\r':
			s = s[1:]
		case s[0] == '\n':
			row++
			s = s[1:]
		default:
			end := strings.IndexAny(s, "\r\n\x1b")
			if end < 0 {
				end = len(s)
			}
			for len(lines) <= row {
				lines = append(lines, "")
			}
			lines[row] += s[:end]
			longest = max(longest, Width(lines[row]))
			s = s[end:]
		}
	}
	return lines, longest
}

func TestALocaleWithoutUTF8GetsASCII(t *testing.T) {
	u := newUser(true, 80, map[string]string{"LANG": "C"}, "")
	u.Note("→ é ✓")
	if got := u.err.String(); got != "-> \\xe9 ok\n" {
		t.Errorf("%q", got)
	}
}

func TestQuietSaysOnlyErrorsAndResults(t *testing.T) {
	u := newUser(false, 80, utf8Env, "")
	u.Quiet = true
	u.Note("a")
	u.Warn("b")
	u.Detail("c")
	if u.err.Len() > 0 {
		t.Errorf("said %q", u.err.String())
	}
	if err := u.Print("result"); err != nil || u.out.String() != "result\n" {
		t.Errorf("%v %q", err, u.out.String())
	}
}
