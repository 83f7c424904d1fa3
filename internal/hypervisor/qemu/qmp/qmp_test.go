package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hello = `{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"x"},"capabilities":["oob"]}}` + "\r\n"

// fake serves one connection with script; what script returns ends it.
func fake(t *testing.T, script func(c *net.UnixConn, r *bufio.Reader)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "q")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		script(c.(*net.UnixConn), bufio.NewReader(c))
	}()
	return path
}

// next reads a command and gives its name and id.
func next(r *bufio.Reader) (string, uint64) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return "", 0
	}
	var m struct {
		Execute string
		ID      uint64
	}
	if json.Unmarshal(line, &m) != nil {
		return "", 0
	}
	return m.Execute, m.ID
}

// polite does the greeting and leaves the rest to script.
func polite(script func(c *net.UnixConn, r *bufio.Reader)) func(c *net.UnixConn, r *bufio.Reader) {
	return func(c *net.UnixConn, r *bufio.Reader) {
		io.WriteString(c, hello)
		if name, id := next(r); name == "qmp_capabilities" {
			fmt.Fprintf(c, `{"return":{},"id":%d}`+"\r\n", id)
			script(c, r)
		}
	}
}

func dial(t *testing.T, path string, onEvent func(Event)) *Conn {
	t.Helper()
	c, err := Dial(limit(t), path, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAnswersFindTheirCommand(t *testing.T) {
	path := fake(t, polite(func(c *net.UnixConn, r *bufio.Reader) {
		_, a := next(r)
		_, b := next(r)
		// out of order, between events and answers to nobody
		fmt.Fprintf(c, `{"event":"RESUME","timestamp":{},"data":{"a":1}}`+"\n")
		fmt.Fprintf(c, `{"return":"nobody's","id":4711}`+"\n")
		fmt.Fprintf(c, `{"return":%d,"id":%d}`+"\n", b, b)
		fmt.Fprintf(c, `{"return":%d,"id":%d}`+"\n", a, a)
		next(r)
	}))
	events := make(chan Event, 4)
	c := dial(t, path, func(e Event) { events <- e })
	if c.Version() != "7.2.22" {
		t.Errorf("version %q", c.Version())
	}
	got := make(chan error, 2)
	for range 2 {
		go func() {
			var n uint64
			err := c.Execute(limit(t), "x", map[string]int{"k": 1}, &n)
			if err == nil && n == 0 {
				err = errors.New("no result")
			}
			got <- err
		}()
	}
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if e := <-events; e.Name != "RESUME" || string(e.Data) != `{"a":1}` {
		t.Errorf("event %+v", e)
	}
}

func TestFailureIsCleanOneLine(t *testing.T) {
	path := fake(t, polite(func(c *net.UnixConn, r *bufio.Reader) {
		_, id := next(r)
		fmt.Fprintf(c, `{"error":{"class":"GenericError","desc":"no\u001b[31m\nway%s"},"id":%d}`+"\n", strings.Repeat("é", 600), id)
		next(r)
	}))
	err := dial(t, path, nil).Execute(limit(t), "x", nil, nil)
	var qe *Error
	if !errors.As(err, &qe) || qe.Class != "GenericError" {
		t.Fatalf("got %v", err)
	}
	if strings.ContainsAny(qe.Desc, "\x1b\n") || len(qe.Desc) > 520 || !strings.HasPrefix(qe.Desc, "no [31m way") {
		t.Errorf("description %q", qe.Desc)
	}
}

func TestFileIsPassed(t *testing.T) {
	want := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(want, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := fake(t, polite(func(c *net.UnixConn, _ *bufio.Reader) {
		b, oob := make([]byte, 4096), make([]byte, 4096)
		n, on, _, _, err := c.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		_, id := next(bufio.NewReader(bytes.NewReader(b[:n])))
		text := "no file"
		if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(msgs) == 1 {
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				pf := os.NewFile(uintptr(fds[0]), "passed")
				got, _ := io.ReadAll(pf)
				pf.Close()
				text = string(got)
			}
		}
		fmt.Fprintf(c, `{"return":%q,"id":%d}`+"\n", text, id)
	}))
	var got string
	if err := dial(t, path, nil).ExecuteFile(limit(t), "getfd", nil, f, &got); err != nil || got != "content" {
		t.Errorf("the other side read %q, %v", got, err)
	}
}

// A QEMU that lies, floods, stalls or goes away ends in an error, in time.
func TestHostile(t *testing.T) {
	for name, script := range map[string]func(c *net.UnixConn, r *bufio.Reader){
		"no greeting": func(c *net.UnixConn, r *bufio.Reader) { next(r) },
		"wrong greeting": func(c *net.UnixConn, r *bufio.Reader) {
			io.WriteString(c, `{"return":{}}`+"\n")
			next(r)
		},
		"endless greeting": func(c *net.UnixConn, r *bufio.Reader) {
			for {
				if _, err := c.Write(bytes.Repeat([]byte("{"), 1<<16)); err != nil {
					return
				}
			}
		},
		"goes away":     func(c *net.UnixConn, _ *bufio.Reader) {},
		"greets, stops": func(c *net.UnixConn, r *bufio.Reader) { io.WriteString(c, hello) },
		"garbage": polite(func(c *net.UnixConn, r *bufio.Reader) {
			next(r)
			io.WriteString(c, "garbage\n")
			next(r)
		}),
		"endless line": polite(func(c *net.UnixConn, r *bufio.Reader) {
			for {
				if _, err := c.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
					return
				}
			}
		}),
		"never answers": polite(func(c *net.UnixConn, r *bufio.Reader) { next(r); next(r) }),
		"wrong id": polite(func(c *net.UnixConn, r *bufio.Reader) {
			next(r)
			io.WriteString(c, `{"return":{},"id":"7"}`+"\n")
			next(r)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			c, err := Dial(ctx, fake(t, script), nil)
			if err == nil {
				defer c.Close()
				err = c.Execute(ctx, "query-status", nil, nil)
			}
			if err == nil {
				t.Error("taken for an answer")
			}
		})
	}
}

func TestCloseEndsWaiting(t *testing.T) {
	c := dial(t, fake(t, polite(func(c *net.UnixConn, r *bufio.Reader) { next(r); next(r) })), nil)
	got := make(chan error, 1)
	go func() { got <- c.Execute(limit(t), "x", nil, nil) }()
	c.Close()
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if err := c.Execute(limit(t), "y", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		hello, `{"return":{},"id":1}`, `{"error":{"class":"c","desc":"d"},"id":18446744073709551615}`,
		`{"event":"STOP","data":{}}`, `{"return":null}`, `{}`, `[]`, `{"id":-1,"return":1}`, `{"QMP":null,"event":null}`, "\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		parts := 0
		for _, set := range []bool{m.greeting != nil, m.event != nil, m.answer != nil} {
			if set {
				parts++
			}
		}
		if (err == nil) != (parts == 1) {
			t.Errorf("%d parts, %v", parts, err)
		}
		if m.answer != nil && m.answer.err != nil {
			if d := m.answer.err.Desc; len(d) > 516 || strings.ContainsAny(d, "\n\r\x1b") {
				t.Errorf("unclean description %q", d)
			}
		}
	})
}
